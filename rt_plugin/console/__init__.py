"""What every command shares: how it ends, files written whole, tables."""
