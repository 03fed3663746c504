"""The node's part in limits of the whole mesh: its enforcement points, their usage and their shares."""
