"""What programs call over the agent's socket."""
