"""What training reads of a data folder: blocks of tokens and batches of them, worked out once and then mapped."""
