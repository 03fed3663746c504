"""Counts of calls, errors and durations, with exemplars."""
