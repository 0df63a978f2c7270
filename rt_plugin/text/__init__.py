"""Raw text of any size, its normalisation, and the tokenizer."""
