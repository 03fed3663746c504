"""The local text model that stands for a provider, its service, and how agents call it."""
