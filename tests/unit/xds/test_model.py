"""Both variants against a model of the protocol, written from its specification alone.

The model is a client as the specification describes it, and the truth that it shall end up with. Everything between the
two takes its time: requests and responses wait in a queue each, so answers are late and nonces are stale as they are on
a real stream. Whatever has happened, once nothing is under way any more

- the client has what the truth has of what it asked for, and of what it cannot take what it took last;
- the server says exactly of that that it is refused;
- it got there with few responses: nothing is sent again and again;

and at no time was it sent anything that it did not ask for, or that was never in its own snapshot.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from xds_client import DISCOVERY, NAME_FIELD, C, E, L, R, item

from meshwarden.xds import api
from meshwarden.xds.delta import DeltaStream
from meshwarden.xds.snapshot import Snapshot
from meshwarden.xds.sotw import SotwStream

pytestmark = pytest.mark.hypothesis

TYPES = (L, R, C, E)
NAMES = ("a", "b", "c", "d")
OTHERS = "of another tenant"
BAD = 3  # whatever is noted with so much, or more, no client takes
ALL_OF_IT = (L, C)  # the types of which a client may ask for all
VERSIONS = {(kind, name, note): item(kind, name, note).version for kind in TYPES for name in NAMES for note in range(6)}
BODIES = {(kind, item(kind, name, note).body): version for (kind, name, note), version in VERSIONS.items()}
NOTES = {(kind, name, version): note for (kind, name, note), version in VERSIONS.items()}

types = st.sampled_from(TYPES)
names = st.sampled_from(NAMES)
subsets = st.sets(names, min_size=1, max_size=3)


class Held:
    """What a client asks for and has of one type."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.all = False
        self.has: dict[str, int] = {}  # {name: note}

    def wants(self, name: str) -> bool:
        return self.all or name in self.names


class Explained:
    """How clients explain what they refuse: by its place, by its name, or not at all."""

    STYLES = ("place", "name", "quotes", "silent")

    @staticmethod
    def text(style: str, response: list[str], bad: list[str]) -> str:
        if style == "place":
            each = (f"resource index {response.index(name)}: {name}: INVALID_ARGUMENT: bad" for name in bad)
            return f"xDS response validation errors: [{'; '.join(each)}]"
        if style == "name":
            return f"Error adding/updating: {', '.join(f'{name}: too bad' for name in bad)}"
        return " and ".join(f"'{name}' is not good" for name in bad) if style == "quotes" else "I refuse"


class Model(RuleBasedStateMachine):
    """What both variants have in common."""

    machine: Any

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[tuple[str, str], int] = {}
        self.ever: set[tuple[str, str, str]] = set()
        self.style = "place"
        self.sent = 0
        self.connect()

    def connect(self) -> None:
        self.to_server: deque[Any] = deque()
        self.to_client: deque[bytes] = deque()
        self.held: dict[str, Held] = {}
        self.old: dict[str, list[str]] = {}  # nonces
        self.machine = self.stream()
        self.styles: set[str] = set()
        self.last: Snapshot | None = None

    def stream(self) -> Any:
        raise NotImplementedError

    # -- the truth

    @rule(kind=types, name=names, note=st.integers(0, 4))
    def put(self, kind: str, name: str, note: int) -> None:
        self.truth[kind, name] = note
        self.ever.add((kind, name, VERSIONS[kind, name, note]))

    @rule(kind=types, name=names)
    def remove(self, kind: str, name: str) -> None:
        self.truth.pop((kind, name), None)

    def snapshot(self) -> Snapshot:
        """What is true now. After a reconnection nothing of it is known by its identity, only by its versions."""
        resources = (item(kind, name, note) for (kind, name), note in self.truth.items())
        self.last = Snapshot.of(resources, before=self.last)
        return self.last

    # -- what is under way

    @rule(style=st.sampled_from(Explained.STYLES))
    def explain(self, style: str) -> None:
        self.style = style

    @precondition(lambda self: self.to_server)
    @rule()
    def a_request_arrives(self) -> None:
        self.machine.request(self.to_server.popleft())

    @rule()
    def a_response_is_sent(self) -> None:
        self.push()

    def push(self) -> bool:
        snapshot = self.snapshot()
        wanted = self.machine.wanted(snapshot)
        if wanted:
            self.to_client.append(self.machine.push(wanted[0], snapshot).payload)
            self.sent += 1
        return bool(wanted)

    @precondition(lambda self: self.to_client)
    @rule()
    def a_response_arrives(self) -> None:
        self.receive(self.to_client.popleft())

    def receive(self, payload: bytes) -> None:
        raise NotImplementedError

    def check(self, kind: str, name: str, version: str) -> int:
        """A resource that has come; returns its note."""
        assert (kind, name, version) in self.ever, "it was never in this client's snapshot"
        return NOTES[kind, name, version]

    def nacked(self, response: list[str], bad: list[str]) -> dict[str, Any]:
        if not bad:
            return {}
        self.styles.add(self.style)
        return {"error_detail": {"code": 3, "message": Explained.text(self.style, response, bad)}}

    # -- what a client does

    @rule()
    def reconnect(self) -> None:
        raise NotImplementedError

    @rule(kind=types, number=st.integers(0, 9))
    def a_stale_or_made_up_nonce(self, kind: str, number: int) -> None:
        if kind in self.held and (nonces := self.old.get(kind, [])):
            nonces = ["made up", *nonces[:-1]]
            self.to_server.append(self.answer(kind, nonces[number % len(nonces)], {}))

    def answer(self, kind: str, nonce: str, error: dict[str, Any]) -> Any:
        raise NotImplementedError

    @rule(kind=st.sampled_from(["", "type.googleapis.com/no.Such", "nonsense"]))
    def an_unknown_type(self, kind: str) -> None:
        self.to_server.append(self.request(type_url=kind))

    def request(self, **fields: Any) -> Any:
        raise NotImplementedError

    # -- what must hold

    @invariant()
    def nothing_of_others(self) -> None:
        assert not any(OTHERS in held.has for held in self.held.values())

    def settle(self) -> None:
        """Lets all come to rest."""
        begun, asked = self.sent, len(self.to_server) + len(self.to_client)
        while True:
            while self.to_server:
                self.machine.request(self.to_server.popleft())
            if not self.push() and not self.to_client:
                break
            while self.to_client:
                self.receive(self.to_client.popleft())
            asked += self.follow()
            # Of each type what is new, deletions, endpoints of changed clusters; and an answer to each request.
            assert self.sent - begun <= 4 * len(TYPES) + asked, "it is sent again and again"

    def follow(self) -> bool:
        """What an Envoy does by itself: who has clusters asks for their endpoints."""
        clusters = self.held.get(C)
        if clusters is not None and clusters.all:
            missing = clusters.has.keys() - self.held.setdefault(E, Held()).names
            if missing:
                self.subscribe_to(E, missing)
                return True
        return False

    def subscribe_to(self, kind: str, some: set[str]) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        self.follow()
        self.settle()
        refused = self.refused()
        assert self.sent_nothing_more()
        routes_refused = any(kind in (L, R) for kind, _ in refused)
        for kind, held in self.held.items():
            for name in NAMES:
                self.compare(kind, held, name, routes_refused)
        named = {(one.type_url, name) for one in self.machine.refusals() for name in one.names}
        assert refused <= named, "what it refuses is not told"
        if "silent" not in self.styles:
            assert named <= refused, "what it takes is told to be refused"

    def sent_nothing_more(self) -> bool:
        return not self.machine.wanted(self.snapshot())

    def refused(self) -> set[tuple[str, str]]:
        return {
            (kind, name)
            for (kind, name), note in self.truth.items()
            if note >= BAD and kind in self.held and self.held[kind].wants(name)
        }

    def compare(self, kind: str, held: Held, name: str, routes_refused: bool) -> None:
        note = self.truth.get((kind, name))
        if not held.wants(name):
            return
        if note is None:
            # What routes may still lead to stays; endpoints go with their cluster.
            kept = (kind in (C, E) and routes_refused) or self.keeps(kind)
            assert kept or name not in held.has, f"{kind} {name} is not deleted"
        elif note < BAD:
            assert held.has.get(name) == note, f"{kind} {name} is {held.has.get(name)}, not {note}"

    def keeps(self, kind: str) -> bool:
        """Whether nothing of this type is ever deleted by the server."""
        return False


class SotwModel(Model):
    """The state-of-the-world variant."""

    def stream(self) -> SotwStream:
        return SotwStream()

    def request(self, **fields: Any) -> Any:
        return api.build(DISCOVERY + "DiscoveryRequest", fields)

    def answer(self, kind: str, nonce: str, error: dict[str, Any]) -> Any:
        held = self.held[kind]
        asked = sorted(held.names) + ["*"] * (held.all and bool(held.names))
        return self.request(type_url=kind, resource_names=asked, response_nonce=nonce, **error)

    def say(self, kind: str) -> None:
        """A request that answers nothing; it has the last nonce that there was."""
        self.to_server.append(self.answer(kind, self.old.get(kind, [""])[-1], {}))

    @rule(kind=types, some=subsets, foreign=st.booleans())
    def subscribe(self, kind: str, some: set[str], foreign: bool) -> None:
        self.subscribe_to(kind, some | ({OTHERS} if foreign else set()))

    def subscribe_to(self, kind: str, some: set[str]) -> None:
        self.held.setdefault(kind, Held()).names |= some
        self.say(kind)

    @rule(kind=st.sampled_from(ALL_OF_IT))
    def subscribe_to_all(self, kind: str) -> None:
        """An empty first request."""
        if kind not in self.held:
            self.held[kind] = Held()
            self.held[kind].all = True
            self.say(kind)

    @rule(kind=types, some=subsets)
    def unsubscribe(self, kind: str, some: set[str]) -> None:
        held = self.held.get(kind)
        if held is None or not held.names & some:
            return
        if held.all and held.names <= some:
            return  # it would have to say "*", and this client then says that it asks for all by an empty list
        held.names -= some
        for name in some if not held.all else ():
            held.has.pop(name, None)
        self.say(kind)

    @rule()
    def reconnect(self) -> None:
        kinds = {kind: (held.names, held.all, held.has) for kind, held in self.held.items()}
        self.connect()
        for kind, (asked, is_all, has) in kinds.items():
            if asked or is_all:
                self.held[kind] = held = Held()
                held.names, held.all, held.has = asked, is_all, has
                self.say(kind)

    def receive(self, payload: bytes) -> None:
        response = api.parse(DISCOVERY + "DiscoveryResponse", payload)
        kind = response.type_url
        held, came, bad = self.held[kind], {}, []
        for body in response.resources:
            name = getattr(api.unpack(body), NAME_FIELD.get(kind, "name"))
            came[name] = self.check(kind, name, BODIES[kind, body.value])
            if came[name] >= BAD:
                bad.append(name)
        for name, note in came.items():
            if held.wants(name) and note < BAD:
                held.has[name] = note
        if kind in ALL_OF_IT:
            for name in held.has.keys() - came.keys():
                del held.has[name]
        self.old.setdefault(kind, []).append(response.nonce)
        self.to_server.append(self.answer(kind, response.nonce, self.nacked(list(came), bad)))

    def keeps(self, kind: str) -> bool:
        return kind not in ALL_OF_IT


class DeltaModel(Model):
    """The incremental variant."""

    def stream(self) -> DeltaStream:
        return DeltaStream()

    def request(self, **fields: Any) -> Any:
        return api.build(DISCOVERY + "DeltaDiscoveryRequest", fields)

    def answer(self, kind: str, nonce: str, error: dict[str, Any]) -> Any:
        return self.request(type_url=kind, response_nonce=nonce, **error)

    @rule(kind=types, some=subsets, foreign=st.booleans())
    def subscribe(self, kind: str, some: set[str], foreign: bool) -> None:
        self.subscribe_to(kind, some | ({OTHERS} if foreign else set()))

    def subscribe_to(self, kind: str, some: set[str]) -> None:
        self.held.setdefault(kind, Held()).names |= some
        self.to_server.append(self.request(type_url=kind, resource_names_subscribe=sorted(some)))

    @rule(kind=st.sampled_from(ALL_OF_IT), star=st.booleans())
    def subscribe_to_all(self, kind: str, star: bool) -> None:
        if kind in self.held and (not star or self.held[kind].all):
            return
        self.held.setdefault(kind, Held()).all = True
        self.to_server.append(self.request(type_url=kind, resource_names_subscribe=["*"] if star else []))

    @rule(kind=types, some=subsets)
    def unsubscribe(self, kind: str, some: set[str]) -> None:
        held = self.held.get(kind)
        if held is None or not (some := some & held.names):
            return
        held.names -= some
        for name in some:
            held.has.pop(name, None)
        self.to_server.append(self.request(type_url=kind, resource_names_unsubscribe=sorted(some)))

    @rule(kind=st.sampled_from(ALL_OF_IT))
    def unsubscribe_from_all(self, kind: str) -> None:
        held = self.held.get(kind)
        if held is None or not held.all:
            return
        held.all = False
        held.has = {name: note for name, note in held.has.items() if name in held.names}
        self.to_server.append(self.request(type_url=kind, resource_names_unsubscribe=["*"]))

    @rule()
    def reconnect(self) -> None:
        kinds = {kind: (held.names, held.all, held.has) for kind, held in self.held.items()}
        self.connect()
        for kind, (asked, is_all, has) in kinds.items():
            if not asked and not is_all:
                continue
            self.held[kind] = held = Held()
            held.names, held.all, held.has = asked, is_all, has
            versions = {name: VERSIONS[kind, name, note] for name, note in has.items()}
            subscribe = sorted(asked) + ["*"] * (is_all and bool(asked))
            fields = {"resource_names_subscribe": subscribe, "initial_resource_versions": versions}
            self.to_server.append(self.request(type_url=kind, **fields))

    def receive(self, payload: bytes) -> None:
        response = api.parse(DISCOVERY + "DeltaDiscoveryResponse", payload)
        kind = response.type_url
        held, bad = self.held[kind], []
        for one in response.resources:
            note = self.check(kind, one.name, one.version)
            if note >= BAD:
                bad.append(one.name)
            elif held.wants(one.name):
                held.has[one.name] = note
        for name in response.removed_resources:
            held.has.pop(name, None)
        self.old.setdefault(kind, []).append(response.nonce)
        error = self.nacked([one.name for one in response.resources], bad)
        self.to_server.append(self.answer(kind, response.nonce, error))


SotwModel.TestCase.settings = DeltaModel.TestCase.settings = settings(stateful_step_count=40)
TestSotw = SotwModel.TestCase
TestDelta = DeltaModel.TestCase
