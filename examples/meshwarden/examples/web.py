"""A web shop: calls orders over proxyless gRPC and billing through its Envoy, steadily, in one trace a round."""

from meshwarden.examples import steady

if __name__ == "__main__":
    steady.main("web", rate=10.0, about=__doc__)
