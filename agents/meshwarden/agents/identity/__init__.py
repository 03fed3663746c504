"""The certificates of the node and of its workloads, and what they trust."""
