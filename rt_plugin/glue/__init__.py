"""GLUE and SuperGLUE: the table of tasks, data, fine-tuning, results, predictions."""
