"""Which client a configuration is for: its kind decides what it is told, and what it can't be.

    Variant.of(ref)                  what a data plane gets, by what its client calls itself
    Variant.parse("node")            as it stands in the name of a scope

A client that nothing is known of, and programs in which clients of several kinds run, get what C-core gets: of all
forms that gRPC takes it promises the least.

Source: gRFC A28, A31, A33, A44 and their implementations (C-core 58, grpc-js-xds 1.14, grpc-go and grpc-java 1.85); for
what each was seen to do, docs/policy.md.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import node_service_pb2


class Kind(StrEnum):
    """A kind of client."""

    C_CORE = "c-core"
    """gRPC of C++, Python, Ruby, PHP, Objective-C and C#'s old one."""
    NODE = "node"
    GO = "go"
    JAVA = "java"
    ENVOY = "envoy"

    @property
    def dialect(self) -> str:
        """The dialect that it understands: "grpc" or "envoy"."""
        return "envoy" if self is Kind.ENVOY else "grpc"


class Feature(StrEnum):
    """What some clients do and others don't."""

    EVERY_HEADER = "every header"
    """Matches any header of a call; gRPC shows its router neither binary ones nor those that its transport adds."""
    EMPTY_HEADER = "empty header"
    """Sees that a header is there whose value is empty."""
    EXACT_TIMEOUT = "exact timeout"
    """Ends a call when its route's timeout is over, and not up to two seconds before."""
    PER_TRY_TIMEOUT = "per-try timeout"
    RETRY_BUDGET = "retry budget"
    HTTP_CODES = "HTTP codes"
    """Looks at the HTTP status of an answer."""
    MIRROR = "mirror"
    HEADERS = "headers"
    """Changes headers."""
    SESSION = "session"
    """Keeps a session's endpoint in a cookie that it gives out (A55)."""
    LEAST_REQUEST = "least request"
    """Takes the idlest of some endpoints (A48)."""


_KINDS: Final = {kind.value: kind for kind in Kind}
ABLE: Final[dict[Kind, frozenset[Feature]]] = {
    Kind.C_CORE: frozenset({Feature.EMPTY_HEADER, Feature.SESSION}),
    Kind.NODE: frozenset({Feature.EMPTY_HEADER, Feature.EXACT_TIMEOUT}),
    Kind.GO: frozenset({Feature.EXACT_TIMEOUT, Feature.LEAST_REQUEST}),
    Kind.JAVA: frozenset({Feature.EMPTY_HEADER, Feature.EXACT_TIMEOUT, Feature.LEAST_REQUEST}),
    Kind.ENVOY: frozenset(Feature),
}
"""What each kind does, of the features that not all have."""

TESTED: Final[dict[Kind, tuple[int, ...] | None]] = {
    Kind.C_CORE: (58,),  # grpcio 1.85
    Kind.NODE: (1, 14),
    Kind.GO: (1, 85),
    Kind.JAVA: None,
    Kind.ENVOY: (1, 40),
}
"""The oldest version of each kind that the tests run, of Go `make interop`; None of one that none does."""


@dataclass(frozen=True)
class Client:
    """What a client calls itself.

    Attributes:
        kind: None if it is none that we know.
        version: its numbers; empty if it doesn't say.
    """

    kind: Kind | None
    version: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Client":
        """Reads "c-core/58.0.0"; whatever it says, it is some client."""
        name, _, rest = text.partition("/")
        numbers = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6}){0,3})(?:[^\d.].*)?", rest, re.ASCII | re.DOTALL)
        return cls(_KINDS.get(name), tuple(map(int, numbers[1].split("."))) if numbers is not None else ())

    def __str__(self) -> str:
        kind = self.kind or "unknown"
        return f"{kind}/{'.'.join(map(str, self.version))}" if self.version else str(kind)


def clients(text: str) -> tuple[Client, ...]:
    """The clients that a data plane's agent has seen there, as `DataPlaneRef.client` names them; in order."""
    return tuple(Client.parse(part.strip()) for part in text.split(",") if part.strip())


@dataclass(frozen=True, order=True)
class Variant:
    """What compiled configuration depends on, of the client that it is for."""

    kind: Kind

    @classmethod
    def of(cls, ref: node_service_pb2.DataPlaneRef) -> "Variant":
        """What a data plane gets.

        Raises:
            ValueError: the dialect is none that we speak.
        """
        if ref.dialect == node_service_pb2.DataPlaneRef.ENVOY:
            return cls(Kind.ENVOY)
        if ref.dialect != node_service_pb2.DataPlaneRef.GRPC:
            raise ValueError(f"data plane {ref.id}: unknown dialect {ref.dialect}")
        kinds = {client.kind for client in clients(ref.client)}
        kind = kinds.pop() if len(kinds) == 1 else None
        return cls(kind if kind is not None and kind.dialect == "grpc" else Kind.C_CORE)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Reads the text of one.

        Raises:
            ValueError: it is none.
        """
        return cls(Kind(text))

    @property
    def dialect(self) -> str:
        """The dialect: "grpc" or "envoy"."""
        return self.kind.dialect

    def can(self, feature: Feature) -> bool:
        """Whether the client does that."""
        return feature in ABLE[self.kind]

    def __str__(self) -> str:
        return str(self.kind)


@dataclass(frozen=True)
class Asker:
    """Who asks for configuration.

    Attributes:
        variant: of what kind its client is.
        caller: the service that calls; without a name it is any that no route policy names.
    """

    variant: Variant
    caller: Name
