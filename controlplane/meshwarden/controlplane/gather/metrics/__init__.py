"""What Prometheus is told: of calls, of the mesh itself, and what workloads measure."""
