"""The reference of `memory, agent with 200 workloads`: a grpc.aio server that has as many SVIDs and serves them.

    python -m benchmarks.bare_workload_api DIRECTORY COUNT

It has the key, the chain and the root of each in memory, in DER, and answers each caller with the next one, by a stream
that stays open. It asks nobody who they are, renews nothing and keeps nothing on disk. It listens on `api.sock` in the
directory, and then writes `ready.json` there.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.control_plane import TRUST_DOMAIN
from meshwarden.agents.workload_api import schema
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root, sign_intermediate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key


def answers(count: int) -> list[Any]:
    """So many answers, each with an SVID of its own."""
    now, root_key, key = utc_now(), new_key(), new_key()
    root = IssuerKey(root_key, (self_signed_root(TRUST_DOMAIN, root_key, now),))
    issuer = IssuerKey(key, sign_intermediate(TRUST_DOMAIN, key.public_key(), root, now))
    made = []
    for number in range(count):
        own, who = new_key(), SpiffeId.workload(TRUST_DOMAIN, "acme", f"w{number}")
        svid = X509Svid.of(issue_leaf(LeafTemplate(who, timedelta(hours=1)), own.public_key(), issuer, now), own)
        answer = schema.X509SVIDResponse()
        answer.svids.add(
            spiffe_id=str(who),
            x509_svid=b"".join(svid.chain_der()),
            x509_svid_key=svid.key_der(),
            bundle=root.root.public_bytes(Encoding.DER),
        )
        made.append(answer)
    return made


async def serve(directory: Path, count: int) -> None:
    """Serves until SIGTERM."""
    waiting, over = answers(count), asyncio.Event()
    held = []

    async def fetch(_: Any, __: Any) -> AsyncIterator[Any]:
        held.append(waiting.pop())
        yield held[-1]
        await over.wait()

    handler = grpc.unary_stream_rpc_method_handler(
        fetch, schema.X509SVIDRequest.FromString, schema.X509SVIDResponse.SerializeToString
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler(schema.SERVICE, {"FetchX509SVID": handler})
    server.add_generic_rpc_handlers((service,))
    socket = directory / "api.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    socket.chmod(0o666)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    (directory / "ready.json").write_text("{}")
    await over.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
