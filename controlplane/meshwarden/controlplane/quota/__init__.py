"""Tenant quotas: how much of a mesh-wide limit each enforcement point may use, decided here and leased out."""
