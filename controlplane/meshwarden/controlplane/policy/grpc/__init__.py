"""The dialect of proxyless gRPC."""
