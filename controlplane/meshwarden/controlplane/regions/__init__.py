"""Other regions: asked for what they have counted, over mTLS, page by page."""
