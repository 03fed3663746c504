"""Commands on who belongs to the mesh, what proves it, and who did what."""
