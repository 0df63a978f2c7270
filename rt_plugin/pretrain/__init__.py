"""Pretraining: recipes, the launcher, one process of several, the log."""
