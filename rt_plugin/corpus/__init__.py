"""From text to binarised shards for pretraining."""
