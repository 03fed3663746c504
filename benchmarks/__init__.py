"""Each benchmark compares Meshwarden with a peer or a limit that is measured in the same run; `make bench` runs them.

They are no tests: nothing here fails because a machine is slow.
"""

import os

# A thousand connections that end say so a thousand times otherwise. It must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
