"""Sample workloads: what `meshwarden up` starts, and what the end-to-end tests drive.

Each is started by `meshwarden-agent exec --entry NAME -- python -m meshwarden.examples.NAME`:

    orders      a gRPC service, proxyless
    billing     a plain HTTP service that knows nothing of the mesh, behind an Envoy
    web         calls both, steadily
    intruder    has an identity and calls both as well, but no policy lets it
    daena       a council of agents of three tenants, with their message bus, model and memory
    probe       does what it is told on its standard input
"""
