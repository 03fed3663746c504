"""Recent traces: kept on the disk, and found by what they are of."""
