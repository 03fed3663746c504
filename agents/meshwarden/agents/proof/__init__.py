"""How the node proves which one it is, before it has an identity."""
