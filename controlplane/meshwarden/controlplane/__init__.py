"""The control plane: the server and the operator's CLI."""
