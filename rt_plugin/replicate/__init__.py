"""The replication: a written plan of pretrainings, run side by side, evaluated on held-out text, reported."""
