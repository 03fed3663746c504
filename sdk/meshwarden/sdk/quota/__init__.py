"""Limits where the call is: shares and chunks of limits across the mesh, buckets, slots, costs."""
