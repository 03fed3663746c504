"""The schema of the Workload API is the standard's."""

import runpy
from pathlib import Path

from meshwarden.agents.workload_api import schema


def test_the_descriptors_are_as_generated(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    made = runpy.run_path(str(root / "proto/spiffe/generate.py"))
    made["main"](tmp_path / "fresh.binpb")
    assert (tmp_path / "fresh.binpb").read_bytes() == made["OUT"].read_bytes()


def test_the_messages_are_the_standards() -> None:
    # Field numbers of the standard's workload.proto, as py-spiffe has them.
    from spiffe._proto import workload_pb2

    svid = {"spiffe_id": "spiffe://a/b", "x509_svid": b"1", "x509_svid_key": b"2", "bundle": b"3", "hint": "h"}
    ours = schema.X509SVIDResponse(svids=[svid], crl=[b"c"], federated_bundles={"spiffe://x": b"y"})
    theirs = workload_pb2.X509SVIDResponse(svids=[svid], crl=[b"c"], federated_bundles={"spiffe://x": b"y"})
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    bundles = {"spiffe://x": b"y"}
    ours, theirs = schema.X509BundlesResponse(bundles=bundles), workload_pb2.X509BundlesResponse(bundles=bundles)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
