"""The SPIFFE Workload API, as the standard has it, for any program of the node and any library."""
