"""What an application imports to call, and to be called, over the mesh.

    from meshwarden import sdk

    with sdk.channel("xds:///orders") as channel: ...
    server = sdk.server(max_workers=16)
    sdk.run(server)
    sdk.peer_identity(context).tenant

`meshwarden.sdk.telemetry.configure` sends the program's spans to its agent.
"""

from meshwarden.sdk.aio_handler import aio_server_interceptor
from meshwarden.sdk.aio_server import aio_run, aio_server
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.channel import aio_channel, channel
from meshwarden.sdk.error import AgentAway, NotStarted, SdkError, SecretMissing
from meshwarden.sdk.quota.cost import report_cost
from meshwarden.sdk.secret import secret
from meshwarden.sdk.server import peer_identity, run, server

__all__ = [
    "AgentAway",
    "Criticality",
    "NotStarted",
    "SdkError",
    "SecretMissing",
    "aio_channel",
    "aio_run",
    "aio_server",
    "aio_server_interceptor",
    "channel",
    "criticality",
    "peer_identity",
    "report_cost",
    "run",
    "secret",
    "server",
]
