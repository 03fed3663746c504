"""The down river's pump: store to mesh to compiled scopes to node sessions; and up again, nodes' endpoints."""
