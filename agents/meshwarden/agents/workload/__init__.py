"""The programs of this node that are workloads: of which entry each is, and what it is given and asked."""
