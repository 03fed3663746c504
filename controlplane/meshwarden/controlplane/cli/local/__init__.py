"""Commands on what runs on this machine, and on which mesh is talked to."""
