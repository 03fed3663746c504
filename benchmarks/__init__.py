"""Each benchmark compares Meshwarden with a peer or a limit that is measured in the same run; `make bench` runs them.

They are no tests: nothing here fails because a machine is slow.
"""
