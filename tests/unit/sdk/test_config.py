"""What the agent says, as the SDK reads it."""

from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import self_signed_root
from meshwarden.certs.svid import new_key
from meshwarden.sdk.config import read
from meshwarden.v1.node_service_pb2 import Bundle, PolicyLimits, ServerLimits
from meshwarden.v1.workload_service_pb2 import WorkloadConfig

DOMAIN = "mesh.test"


def said(limits: ServerLimits | None) -> WorkloadConfig:
    root = self_signed_root(DOMAIN, new_key(), utc_now()).public_bytes(Encoding.DER)
    bundle = Bundle(trust_domain=DOMAIN, roots=[root], revision=1)
    spiffe_id = f"spiffe://{DOMAIN}/tenant/platform/service/orders"
    return WorkloadConfig(spiffe_id=spiffe_id, bundle=bundle, limits=limits)


def test_limits_stand_until_the_agent_says_others() -> None:
    limited = ServerLimits(policies=[PolicyLimits(policy="platform/orders")])
    first = read(said(None), None)
    assert first.limits == ServerLimits()
    known = read(said(limited), first)
    # One that has started again and hasn't heard of them yet.
    unsaid = read(said(None), known)
    assert unsaid.limits == limited
    assert read(said(ServerLimits()), unsaid).limits == ServerLimits()
