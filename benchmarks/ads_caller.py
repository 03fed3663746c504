"""A workload that follows the endpoints of one service, as gRPC's own client does: it takes what comes and says so.

    python -m benchmarks.ads_caller SOCKET NAME

It is started by `meshwarden-agent exec`, and writes a line of JSON once it has the endpoints of NAME.
"""

import asyncio
import json
import sys
from typing import Any

import grpc.aio

from meshwarden.xds import api
from meshwarden.xds.server import SERVICE

METHOD = f"/{SERVICE}/StreamAggregatedResources"
DISCOVERY = "envoy.service.discovery.v3."


async def follow(path: str, name: str) -> None:
    """Follows until it is ended."""
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.write(_request(name))
        is_told = False
        while (message := await call.read()) is not grpc.aio.EOF:
            response: Any = api.parse(DISCOVERY + "DiscoveryResponse", message)
            await call.write(_request(name, response.version_info, response.nonce))
            if response.resources and not is_told:
                is_told = True
                print(json.dumps({"resources": len(response.resources)}), flush=True)


def _request(name: str, version: str = "", nonce: str = "") -> bytes:
    fields = {"type_url": api.ENDPOINT, "resource_names": [name], "version_info": version, "response_nonce": nonce}
    return api.build(DISCOVERY + "DiscoveryRequest", fields).SerializeToString()


if __name__ == "__main__":
    asyncio.run(follow(*sys.argv[1:]))
