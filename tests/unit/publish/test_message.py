"""Messages in pieces: what a node reads is what was meant, and what is the same for all is there once."""

from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.publish import message
from meshwarden.controlplane.publish.message import Message
from meshwarden.v1 import node_service_pb2 as v1

RESOURCES = st.builds(
    v1.XdsResource,
    type_url=st.text(max_size=20),
    name=st.text(max_size=20),
    version=st.text(max_size=20),
    body=st.one_of(st.binary(max_size=300), st.integers(100, 70_000).map(bytes)),
)
SCOPES = st.tuples(
    st.builds(
        v1.ScopeUpdate,
        scope=st.text(max_size=200),
        full=st.booleans(),
        removed=st.lists(st.builds(v1.XdsResourceName, name=st.text(max_size=9)), max_size=2),
    ),
    st.lists(st.lists(RESOURCES, max_size=3), max_size=3),
)


@given(st.integers(0, 2**63), st.lists(SCOPES, max_size=3), st.text(max_size=60), st.lists(st.text(), max_size=2))
def test_a_node_reads_what_was_put_together(
    revision: int,
    scopes: list[tuple[v1.ScopeUpdate, list[list[v1.XdsResource]]]],
    parent: str,
    planes: list[str],
) -> None:
    rest = v1.ConfigUpdate(trace_parent=parent, data_planes=[v1.DataPlaneScopes(id=name) for name in planes])
    pieces = [message.scope(update, tuple(map(message.resources_of, parts))) for update, parts in scopes]
    made = Message.config(revision, pieces, rest)
    for update, parts in scopes:
        update.resources.extend(item for part in parts for item in part)
    wanted = v1.ConfigUpdate(revision=revision, scopes=[update for update, _ in scopes])
    wanted.MergeFrom(rest)
    for found in (made, made.joined()):
        body = found.body()
        assert len(body) == found.size_bytes
        assert v1.SyncResponse.FromString(body) == v1.SyncResponse(config=wanted)
        assert (found.kind, found.revision, found.said) == ("config", revision, None)


def test_what_many_get_is_serialised_once() -> None:
    large = message.resources_of([v1.XdsResource(name="a", body=bytes(1 << 20))])
    shared = message.scope(v1.ScopeUpdate(scope="client/acme/envoy", full=True), (large,))
    plane = v1.ConfigUpdate(data_planes=[v1.DataPlaneScopes(id="p")])
    waiting = [Message.config(1, [shared], plane) for _ in range(3)]
    assert all(any(piece is large for piece in vars_of(made)) for made in waiting), "and none has a copy while it waits"
    together = Message.config(1, [shared], v1.ConfigUpdate()).joined()
    assert together.body() is together.body()
    order = v1.SyncResponse(renew_now=v1.RenewNow(reason="test"))
    alone = Message.of(order)
    assert alone.body() is alone.body()
    assert (alone.kind, alone.said, alone.revision) == ("renew_now", order, 0)


def vars_of(made: Message) -> tuple[bytes, ...]:
    pieces: tuple[bytes, ...] = made._pieces
    return pieces
