"""Who did what: append-only events, each chained to the one before it."""
