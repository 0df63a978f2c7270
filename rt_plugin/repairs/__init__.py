"""What fairseq 0.12.3.1 needs on today's Python, torch and numpy."""
