"""The dialect of Envoy."""
