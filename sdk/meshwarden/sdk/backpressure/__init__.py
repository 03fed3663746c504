"""What keeps a server from more than it can do with, and its callers from asking for that."""
