"""What fairseq 0.12.3.1 needs on today's Python, torch and numpy; `registry` says what a repair is.

`libraries`, `precision`, `memory`, `distributed`, `data`, `checkpoint_files`, `stopping` and `resuming` repair;
`behaviour` does something else than fairseq on purpose; `refusals` stop what would go wrong silently. docs/fairseq.md
lists them.
"""
