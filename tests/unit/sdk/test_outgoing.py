"""What is said of a denied call, and what is taken for a decision of the mesh."""

import logging
from pathlib import Path

import grpc
import pytest
from tests.counted import stats_of

from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.config import Config
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.outgoing import DECISION_KEY, Outgoing
from meshwarden.sdk.red.count import Counter
from meshwarden.v1.node_service_pb2 import ServerLimits
from meshwarden.v1.report_pb2 import CallStat

RBAC = "Unauthorized RPC rejected"
GET = "/o.Orders/Get"


class Link:
    """A link whose configuration the test gives."""

    def __init__(self, names: dict[str, str] | None, known: bool = True) -> None:
        self.counter = Counter(utc_now)
        self.denials = Denials()
        self.last_config = None
        if known:
            identity = SpiffeId.workload("mesh.test", "acme", "web")
            self.last_config = Config(identity, {}, ServerLimits(), 7, Path(), names or {})


def decided(link: Link, name: str, code: grpc.StatusCode, details: str = "", *trailing: tuple[str, str]) -> int:
    Outgoing(link, name).begin(GET).end(code, details, trailing)  # type: ignore[arg-type]
    (stat,) = stats_of(link.counter.take())
    return stat.decision


@pytest.mark.parametrize(
    ("code", "details", "trailing", "decision"),
    [
        (grpc.StatusCode.OK, "", (), CallStat.ALLOWED),
        (grpc.StatusCode.OK, "", ((DECISION_KEY, "denied"),), CallStat.ALLOWED),
        (grpc.StatusCode.PERMISSION_DENIED, RBAC, (), CallStat.DENIED),
        (grpc.StatusCode.PERMISSION_DENIED, "not your order", (), CallStat.ALLOWED),
        (grpc.StatusCode.UNAUTHENTICATED, "expired", ((DECISION_KEY, "denied"),), CallStat.DENIED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", (), CallStat.ALLOWED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "limit", ((DECISION_KEY, "limited"),), CallStat.LIMITED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "limit", ((DECISION_KEY, "nonsense"),), CallStat.ALLOWED),
    ],
)
def test_the_programs_own_errors_are_not_the_policies(
    code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str], ...], decision: int
) -> None:
    assert decided(Link({}), "orders", code, details, *trailing) == decision


@pytest.mark.parametrize(
    ("name", "names", "known", "command"),
    [
        ("orders", {"orders": "platform/orders"}, True, f"--from acme/web --to platform/orders --method {GET}"),
        ("orders.platform", {}, True, f"--from acme/web --to platform/orders --method {GET}"),
        ("orders", {}, True, f"--from acme/web --to TENANT/orders --method {GET}"),
        ("orders.platform", {}, False, f"--from TENANT/SERVICE --to platform/orders --method {GET}"),
    ],
)
def test_a_denied_call_names_the_command_that_explains_it(
    caplog: pytest.LogCaptureFixture, name: str, names: dict[str, str], known: bool, command: str
) -> None:
    decided(Link(names, known), name, grpc.StatusCode.PERMISSION_DENIED, RBAC)
    assert caplog.records[0].levelno == logging.WARNING
    assert f"meshwarden explain {command}" in caplog.text


def test_it_is_said_once_a_minute_for_each_method(caplog: pytest.LogCaptureFixture) -> None:
    link = Link({"orders": "platform/orders"})
    for name in ("orders.platform", "orders"):  # two channels, one callee
        outgoing = Outgoing(link, name)  # type: ignore[arg-type]
        for method in (GET, GET, "/o.Orders/List", GET):
            outgoing.begin(method).end(grpc.StatusCode.PERMISSION_DENIED, RBAC, ())
    assert len(caplog.records) == 2


def test_a_call_that_ends_twice_counts_once() -> None:
    link = Link({})
    call = Outgoing(link, "orders").begin(GET)  # type: ignore[arg-type]
    call.end(grpc.StatusCode.CANCELLED, "", ())
    call.end(grpc.StatusCode.OK, "", ())
    (stat,) = stats_of(link.counter.take())
    assert (stat.count, stat.status, stat.destination) == (1, "CANCELLED", "orders")
