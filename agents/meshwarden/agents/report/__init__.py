"""What the agent says of itself and of its node: to its control plane, to Prometheus and to whoever asks it."""
