"""Lets the suites import `certs_build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
