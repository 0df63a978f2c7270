"""What an encoder knows without fine-tuning: sentence scores, minimal pairs, and what its recurrence has learned."""
