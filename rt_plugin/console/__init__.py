"""What every command shares: how it ends, progress, tables, files written whole, locks, the end of processes."""
