"""fairseq criterions of the plugin; importing this package registers them."""
