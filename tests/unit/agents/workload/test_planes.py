"""Addresses of data planes: chosen once, remembered, and not of those that the kernel lends to callers."""

import json
import random
import socket
from pathlib import Path

from meshwarden.agents.cache import Cache
from meshwarden.agents.workload.planes import Planes
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.v1 import resources_pb2 as resources


def workload(number: int) -> Workload:
    entry = resources.WorkloadEntry(metadata=resources.Metadata(tenant="acme", name="web"))
    entry.spec.data_plane = resources.WorkloadEntrySpec.ENVOY
    return Workload(
        id=f"acme/web#{number}",
        entry=entry,
        service=resources.Service(),
        spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"),
        pid=1,
        start_time=1,
        pidfd=-1,
        uid=0,
        gid=0,
        port=8000 + number,
        directory=Path("/nowhere"),
        number=number,
    )


def test_ports_are_chosen_once_and_none_is_lent_to_callers(tmp_path: Path) -> None:
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    planes = Planes(Cache(tmp_path), "127.0.0.1", random.Random(1))
    ports = [planes.mesh_port(workload(number)) for number in range(1, 20)]
    assert len(set(ports)) == len(ports)
    assert all(1024 <= port < int(first) for port in ports)
    again = Planes(Cache(tmp_path), "127.0.0.1", random.Random(2))
    assert [again.mesh_port(workload(number)) for number in range(1, 20)] == ports


def test_a_port_that_is_taken_is_not_chosen(tmp_path: Path) -> None:
    port = Planes(Cache(tmp_path / "a"), "127.0.0.1", random.Random(1)).mesh_port(workload(1))
    with socket.create_server(("127.0.0.1", port)):
        other = Planes(Cache(tmp_path / "b"), "127.0.0.1", random.Random(1)).mesh_port(workload(1))
    assert other != port


def test_ports_that_are_no_ports_are_set_aside(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for junk in (b"{", b"[]", b'{"a": 0}', b'{"a": "x"}', json.dumps({"a": 70000}).encode()):
        cache.save("ports", junk)
        Planes(cache, "127.0.0.1", random.Random(1))
        assert cache.load("ports") is None
