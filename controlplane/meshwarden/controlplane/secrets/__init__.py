"""References to secrets, and the places that they lead to."""
