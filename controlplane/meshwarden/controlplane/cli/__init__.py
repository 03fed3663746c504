"""The operator's command line: parse, call, print, exit code. It knows the mesh only through its gRPC API."""
