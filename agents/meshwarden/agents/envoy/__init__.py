"""The Envoys that the agent starts and keeps beside programs."""
