"""OTLP out: what waits for backends, and how it is sent."""
