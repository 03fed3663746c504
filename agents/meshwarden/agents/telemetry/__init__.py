"""What data planes and programs report of their calls, on its way to the control plane."""
