"""The edges: one file per gRPC service; errors are mapped once."""
