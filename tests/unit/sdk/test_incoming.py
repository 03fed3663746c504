"""Who calls, at each call: whatever is remembered of certificates, one peer never gets another's identity."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.duration_pb2 import Duration
from tests.counted import stats_of

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.incoming import Incoming, current_peer
from meshwarden.sdk.red.count import Counter
from meshwarden.sdk.tracing.trace import tracer
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Chunk, Share, ShareRequest, ShareResponse
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

DOMAIN, GET = "mesh.test", "/o.Orders/Get"
HOUR = timedelta(hours=1)


class Aborted(Exception):
    pass


class Context:
    """A call's, as far as the check looks at it."""

    def __init__(self, *pem: bytes) -> None:
        self.pem = pem
        self.metadata: tuple[tuple[str, str], ...] = (("x-tenant", "globex"),)
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    def auth_context(self) -> dict[str, list[bytes]]:
        shown = {"x509_pem_cert": [self.pem[0]], "x509_pem_cert_chain": list(self.pem)} if self.pem else {}
        return {"security_level": [b"TSI_PRIVACY_AND_INTEGRITY"], **shown}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def send_initial_metadata(self, metadata: Any) -> None:
        pass

    set_trailing_metadata = send_initial_metadata

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.aborted = (code, details)
        raise Aborted

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> None:
        return None

    def code(self) -> None:
        return None


class World:
    """A server's check, and an authority."""

    def __init__(self) -> None:
        self.now = utc_now()
        self.key, self.root = self.new_root()
        config = SimpleNamespace(
            federated=self.bundles(),
            spiffe_id=SpiffeId.workload(DOMAIN, "platform", "orders"),
            service="platform/orders",
            revision=7,
            limits=ServerLimits(),
            deny_list=(),
            access=None,
        )
        self.link: Any = SimpleNamespace(
            config=config, counter=Counter(lambda: self.now), listen=lambda listener: listener(config)
        )
        self.incoming = Incoming(self.link, lambda: self.now)

    def new_root(self) -> tuple[Any, Any]:
        key = new_key()
        return key, self_signed_root(DOMAIN, key, self.now)

    def bundles(self) -> dict[str, Bundle]:
        return {DOMAIN: Bundle.of(DOMAIN, [self.root])}

    def context(self, tenant: str, ttl: timedelta = HOUR, by: tuple[Any, Any] | None = None) -> Context:
        key, root = by or (self.key, self.root)
        template = LeafTemplate(SpiffeId.workload(DOMAIN, tenant, "web"), ttl)
        chain = issue_leaf(template, new_key().public_key(), IssuerKey(key, (root,)), self.now)
        return Context(*(certificate.public_bytes(Encoding.PEM) for certificate in chain))

    def caller(self, context: Context) -> str | None:
        """Who calls; None if the call is refused."""
        try:
            call = self.incoming.begin(GET, context, stream=False)
        except Aborted:
            return None
        call.returned()
        peer = current_peer()
        assert peer is not None
        assert str(peer.spiffe_id) == call.source
        return call.source

    def counted(self) -> dict[tuple[str, str], int]:
        return {(stat.source, stat.status): stat.count for stat in stats_of(self.link.counter.take())}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    tracer.cache_clear()
    return World()


def of(tenant: str) -> str:
    return f"spiffe://{DOMAIN}/tenant/{tenant}/service/web"


def test_what_a_call_matters_goes_on_to_the_calls_made_for_it_and_no_further(world: World) -> None:
    said, silent = world.context("acme"), world.context("acme")
    said.metadata = ((criticality.KEY, "SHEDDABLE"),)
    assert world.caller(said) == of("acme")
    assert criticality.current() is Criticality.SHEDDABLE
    assert world.caller(silent) == of("acme")
    assert criticality.current() is None


@pytest.mark.parametrize("comes", [True, False])
def test_a_call_waits_for_what_is_on_its_way(world: World, comes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshwarden.sdk.quota.limits.WAIT_S", 20.0 if comes else 0.0)
    monkeypatch.setattr("meshwarden.sdk.quota.chunk.WAIT_S", 20.0 if comes else 1e-3)
    world.link.share = answering
    spec = RatePolicySpec(period=RatePolicySpec.DAY, limits=[RateLimit(tenant="acme", requests=9)])
    world.incoming._limits.update(ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=spec)]))
    context = world.context("acme")
    assert (world.caller(context) is not None) is comes
    assert context.aborted is None or context.aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    world.incoming._limits.close()


def answering(requests: Iterable[ShareRequest]) -> Iterator[ShareResponse]:
    """An agent that gives all that is asked for."""
    for request in requests:
        answer = ShareResponse(answers=request.sequence, ttl=Duration(seconds=60))
        for usage in request.points[0].usages:
            chunk = Chunk(series=usage.chunks.series, turn=1, amount=9, until=Duration(seconds=99))
            answer.points.add(point="p", shares=[Share(bucket=usage.bucket, chunk=chunk)])
        yield answer


def test_peers_that_take_turns_are_each_themselves(world: World) -> None:
    acme, globex = world.context("acme"), world.context("globex")
    for _ in range(3):
        assert world.caller(acme) == of("acme")
        assert world.caller(globex) == of("globex")
    assert world.caller(world.context("acme")) == of("acme")  # another certificate
    assert world.counted() == {(of("acme"), "OK"): 4, (of("globex"), "OK"): 3}


def test_more_callers_than_are_remembered_are_each_themselves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshwarden.sdk.mtls.caller._MAX_CALLERS", 2)
    contexts = {f"t{number}": world.context(f"t{number}") for number in range(5)}
    for _ in range(2):
        assert {tenant: world.caller(context) for tenant, context in contexts.items()} == {
            tenant: of(tenant) for tenant in contexts
        }


def test_what_is_remembered_ends_with_the_certificate(world: World) -> None:
    context = world.context("acme", timedelta(minutes=5))
    assert world.caller(context) == of("acme")
    world.now += timedelta(minutes=6)
    assert world.caller(context) is None
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.UNAUTHENTICATED
    assert "has expired" in context.aborted[1]


def test_what_is_remembered_ends_with_the_root(world: World) -> None:
    context = world.context("acme")
    assert world.caller(context) == of("acme")
    world.key, world.root = world.new_root()
    world.link.config.federated = world.bundles()
    assert world.caller(context) is None


def test_a_name_that_another_authority_gives_is_not_that_of_the_one_remembered(world: World) -> None:
    assert world.caller(world.context("acme")) == of("acme")
    assert world.caller(world.context("acme", by=world.new_root())) is None


@pytest.mark.parametrize(
    "pem", [(), (b"garbage",), (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",)]
)
def test_what_is_no_certificate_is_refused_each_time(world: World, pem: tuple[bytes, ...]) -> None:
    for _ in range(2):
        assert world.caller(Context(*pem)) is None
    assert world.counted() == {("", "UNAUTHENTICATED"): 2}


def test_time_is_asked_at_each_call(world: World) -> None:
    asked: list[datetime] = []
    incoming = Incoming(world.link, lambda: asked.append(world.now) or world.now)  # type: ignore[func-returns-value]
    context = world.context("acme")
    for _ in range(3):
        incoming.begin(GET, context, stream=False)
    assert len(asked) == 3
