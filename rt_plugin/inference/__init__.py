"""A loaded model at work on text: fill in, features, embeddings, scores, classes; and the commands for files."""

MASKS = ("token", "word")  # what is hidden at a time, see likelihood
