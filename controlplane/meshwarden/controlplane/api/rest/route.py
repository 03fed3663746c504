"""Which RPC a verb and a path mean: read out of the schema's `google.api.http` annotations, once.

    routes = load()
    verbs, values = Router(routes).find("/v1/resources/Service/acme/web")

A path is split at its slashes before anything is decoded, so that "%2F" stays within its segment; what follows the last
colon of the last segment is the action, if there is one of that name ("/v1/resources:apply").

Source: google/api/http.proto, "HTTP rules"; of its templates `{field}` and `{field.part}` are used here.
"""

import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from meshwarden.controlplane.api.rest import deprecation
from meshwarden.controlplane.resources.described import Comments
from meshwarden.controlplane.resources.validate import schema

_VERBS: Final = ("get", "put", "post", "delete", "patch")
_VARIABLE: Final = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")


@dataclass(frozen=True)
class Route:
    """One way to an RPC.

    Attributes:
        method: the RPC, "/meshwarden.v1.ResourceService/Get".
        verb: the HTTP method, "GET".
        segments: the path's, each a literal or a variable; a variable is its field's path, "{ref.name}".
        action: what follows the last colon, "apply"; empty for nothing.
        body: which field the body is, "*" for all that the path does not say, empty for none.
        request: the class of the RPC's request.
        response: the class of its answer.
        streams: whether it answers by a stream.
        number: which of the RPC's ways this is, from 0.
        deprecation: the headers of its answers, if it is deprecated.
    """

    method: str
    verb: str
    segments: tuple[str, ...]
    action: str
    body: str
    request: type[Message] = field(repr=False)
    response: type[Message] = field(repr=False)
    streams: bool
    number: int
    deprecation: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def variables(self) -> Mapping[str, str]:
        """{name in the path: path of the field}, {"name": "ref.name"}."""
        paths = [match[1] for segment in self.segments if (match := _VARIABLE.fullmatch(segment))]
        return {camel(path.rpartition(".")[2]): path for path in paths}

    @functools.cached_property
    def path(self) -> str:
        """The template, with the names of `variables`."""
        names = {path: name for name, path in self.variables.items()}
        shown = (_VARIABLE.sub(lambda match: f"{{{names[match[1]]}}}", segment) for segment in self.segments)
        return "/" + "/".join(shown) + (f":{self.action}" if self.action else "")

    @property
    def name(self) -> str:
        """The RPC's name without its package, "ResourceService.Get"."""
        return self.method.rpartition(".")[2].replace("/", ".")


def camel(name: str) -> str:
    """A field's name as JSON has it."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@functools.cache
def load() -> tuple[Route, ...]:
    """Reads all routes, in the order of the schema.

    Raises:
        ValueError: an annotation says what is not served here.
    """
    return routes_of(schema().files.file)


def routes_of(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> tuple[Route, ...]:
    """Reads the routes of these files, in their order.

    Raises:
        ValueError: an annotation says what is not served here, or what is deprecated doesn't say since when.
    """
    files = list(files)
    comments = Comments(files)
    return tuple(
        route
        for file in files
        for service in file.service
        for method in service.method
        for route in _routes(
            f"/{file.package}.{service.name}/{method.name}",
            method,
            file.name,
            comments[f"{file.package}.{service.name}.{method.name}"],
        )
    )


def _routes(name: str, method: descriptor_pb2.MethodDescriptorProto, file: str, comment: str) -> Iterator[Route]:
    # Read anew: the schema may have been loaded before the annotations were known here.
    options = descriptor_pb2.MethodOptions.FromString(method.options.SerializeToString())
    if not options.HasExtension(annotations_pb2.http):
        return
    rule = options.Extensions[annotations_pb2.http]
    importlib.import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2")  # which makes the classes
    if method.client_streaming:
        raise ValueError(f"{name}: what streams requests has no way by HTTP")
    said = deprecation.headers(name, comment) if options.deprecated else ()
    for number, one in enumerate((rule, *rule.additional_bindings)):
        verb = str(one.WhichOneof("pattern"))
        if verb not in _VERBS or one.response_body:
            raise ValueError(f"{name}: binds no verb, or a part of the answer")
        segments, action = _parsed(name, getattr(one, verb))
        yield Route(
            method=name,
            verb=verb.upper(),
            segments=segments,
            action=action,
            body=one.body,
            request=_class(method.input_type),
            response=_class(method.output_type),
            streams=method.server_streaming,
            number=number,
            deprecation=said,
        )


def _parsed(name: str, template: str) -> tuple[tuple[str, ...], str]:
    path, colon, action = template.rpartition(":")
    segments = tuple((path if colon else template).removeprefix("/").split("/"))
    for segment in segments:
        if not _VARIABLE.fullmatch(segment) and not re.fullmatch(r"[A-Za-z0-9]+", segment):
            raise ValueError(f"{name}: {template}: {segment!r} is neither a word nor a variable")
    return segments, action if colon else ""


def _class(full_name: str) -> type[Message]:
    pool: Any = descriptor_pool.Default()
    made: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name.removeprefix(".")))
    return made


@dataclass
class _Place:
    """Where one is after some segments."""

    words: dict[str, "_Place"] = field(default_factory=dict)
    variable: "_Place | None" = None
    # {action: {verb: route}}
    actions: dict[str, dict[str, Route]] = field(default_factory=dict)


class Router:
    """Finds routes by their path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Takes routes in.

        Raises:
            ValueError: two of them have the same verb and path.
        """
        self._root = _Place()
        self._actions = frozenset(route.action for route in routes if route.action)
        for route in routes:
            place = self._root
            for segment in route.segments:
                if _VARIABLE.fullmatch(segment):
                    place.variable = place.variable or _Place()
                    place = place.variable
                else:
                    place = place.words.setdefault(segment, _Place())
            verbs = place.actions.setdefault(route.action, {})
            if route.verb in verbs:
                raise ValueError(f"{route.method} and {verbs[route.verb].method} are both {route.verb} {route.path}")
            verbs[route.verb] = route

    def find(self, segments: Sequence[str]) -> tuple[Mapping[str, Route], list[str]]:
        """Finds what a path means.

        Args:
            segments: of the path, not decoded.

        Returns:
            {verb: route}, empty if there is no such path; and the segments that stand for variables, in their order.
        """
        word, colon, action = segments[-1].rpartition(":")
        if colon and action in self._actions:
            found = _find(self._root, [*segments[:-1], word], action)
            if found is not None:
                return found
        return _find(self._root, segments, "") or ({}, [])


def _find(place: _Place, segments: Sequence[str], action: str) -> tuple[Mapping[str, Route], list[str]] | None:
    if not segments:
        verbs = place.actions.get(action)
        return (verbs, []) if verbs else None
    word = place.words.get(segments[0])
    if word is not None and (found := _find(word, segments[1:], action)) is not None:
        return found
    if place.variable is None or (found := _find(place.variable, segments[1:], action)) is None:
        return None
    return found[0], [segments[0], *found[1]]
