"""mTLS servers of our own: the front that ends TLS, and who is calling, checked at every call."""
