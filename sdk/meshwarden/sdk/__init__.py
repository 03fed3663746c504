"""What an application imports to be called, and to call, over the mesh."""
