"""Tail sampling: which traces go on to backends."""
