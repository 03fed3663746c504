"""The orders service: `python -m meshwarden.examples.orders --version v2`."""
