"""Which data planes are seen to know our own trust domain alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from meshwarden.agents.xds.interest import Interest, is_home_only
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


def test_a_server_without_the_sdk_is_told_as_such_until_it_has_asked_the_agent() -> None:
    said: list[Any] = []
    first, second = SimpleNamespace(id="p/orders#1"), SimpleNamespace(id="p/orders#1")
    registry: Any = SimpleNamespace(workloads={"p/orders#1": first})
    ref = node_pb.DataPlaneRef(id="p/orders#1/grpc", dialect=node_pb.DataPlaneRef.GRPC, listen_address="127.0.0.1:7001")

    def refs(_: Any) -> list[node_pb.DataPlaneRef]:
        made = node_pb.DataPlaneRef()
        made.CopyFrom(ref)
        return [made]

    interest = Interest(refs, registry, said.append)
    assert not interest.refs(first)[0].without_sdk, "nobody is there"  # type: ignore[arg-type]
    interest.heard("p/orders#1/grpc", [(CORE, False)])
    assert said.pop()[0].without_sdk
    for _ in range(2):
        interest.attend(first)  # type: ignore[arg-type]
    assert [one.without_sdk for (one,) in said] == [False]
    # Another program takes its place.
    registry.workloads["p/orders#1"] = second
    assert interest.refs(second)[0].without_sdk  # type: ignore[arg-type]
    interest.attend(second)  # type: ignore[arg-type]
    assert not said[-1][0].without_sdk
    ref.ClearField("listen_address")
    registry.workloads["p/orders#1"] = SimpleNamespace(id="p/orders#1")
    (client,) = interest.refs(registry.workloads["p/orders#1"])
    assert not client.without_sdk, "who only calls holds no limits"
