"""fairseq tasks of the plugin; importing this package registers them."""

from . import rt_glue, rt_masked_lm  # noqa: F401
