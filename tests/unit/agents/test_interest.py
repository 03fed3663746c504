"""Which data planes are seen to know our own trust domain alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from meshwarden.agents.interest import Interest, is_home_only
from meshwarden.v1 import node_service_pb2 as node_pb

SWITCH = "GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE"
CORE, NODE = "c-core/58.0.0", "node/1.14.1"


@contextmanager
def program(**environment: str) -> Iterator[int]:
    """A program's pid."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is another program by now, with its own environment
        yield process.pid
        process.communicate()


def test_who_is_seen_to_know_our_own_trust_domain_alone() -> None:
    assert is_home_only(NODE, os.getpid())
    assert is_home_only(NODE, None)
    for other in ("envoy/1.40.0", "unknown", "java/1.85.0", ""):
        assert not is_home_only(other, os.getpid())
    for value, alone in (("true", False), ("1", False), ("false", True), ("", True)):
        with program(**{SWITCH: value}) as pid:
            assert is_home_only(CORE, pid) is alone, value
            assert is_home_only("go/1.85.0", pid) is (value != "true"), value
    with program(**{f"NO_{SWITCH}": "true"}) as pid:
        assert is_home_only(CORE, pid)
        assert is_home_only("go/1.85.0", pid)
    for hidden in (pid, None):
        assert not is_home_only(CORE, hidden), "what can't be seen isn't claimed"


def test_the_control_plane_is_told_when_that_changes() -> None:
    said: list[Any] = []
    registry: Any = SimpleNamespace(workloads={"acme/web#1": None})
    interest = Interest(lambda _: [node_pb.DataPlaneRef(id="acme/web#1/grpc")], registry, said.append)
    for clients in ([(CORE, False)], [(CORE, False)], [(CORE, False), (CORE, True)], []):
        interest.heard("acme/web#1/grpc", clients)
    assert [(ref.client, ref.home_only) for (ref,) in said] == [(CORE, False), (CORE, True)]
