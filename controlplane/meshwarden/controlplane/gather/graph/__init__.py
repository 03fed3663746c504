"""Counts of calls, kept: as the service graph, and minute by minute as the ledger."""
