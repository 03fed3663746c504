"""Revisioned records: the port, its limits and its engines."""
