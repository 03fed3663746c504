"""A whole mesh on this machine: what `meshwarden up` starts, watches and stops, and how this user's commands find it.

LocalError
├── NoContext    no mesh is known by that name
└── Held         another process holds the state directory
"""
