"""Who holds the signing key: the port and its engines."""
