"""A trained model as others use it: a folder with the weights, what is needed to use them, and a model card."""
