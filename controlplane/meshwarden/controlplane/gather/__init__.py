"""The up river's mouth: counts and spans come in from agents, metrics, a ledger and traces go out."""
