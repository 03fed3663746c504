"""REST under /v1: the RPCs of the control plane, transcoded to HTTP and JSON as the schema's annotations say.

What is reached by REST is reached through the same servicers, behind the same interceptors, as by gRPC.

    http        HTTP/1.1 on a connection: requests in, answers and event streams out
    route       which RPC a verb and a path mean, out of the schema
    deprecation    what answers of a deprecated RPC say
    bind        a request's path, query, headers and body as an RPC's request; every fault of shape at once
    direct      the context of a call that comes without gRPC, and the handlers with all interceptors before them
    encode      an RPC's answer as JSON
    problem     an RPC's refusal as application/problem+json
    json_schema, openapi    the same routes as a document
    browser, cookie    calls of browsers, by a session that stands for a certificate
    site        files for browsers, which hold no data
    door        all of it behind one TLS listener
"""
