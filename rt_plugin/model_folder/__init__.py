"""The unit that people pass on: a folder with a checkpoint and all that is needed to use it on new text."""
