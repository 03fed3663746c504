"""What resources were as of a revision, by what was changed since."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from meshwarden.controlplane.history.read import records
from meshwarden.controlplane.history.record import revision_before, summary_of, whole
from meshwarden.controlplane.resources.model import key_of
from meshwarden.controlplane.store.port import Store
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource


class Unknown(Exception):
    """The history does not go back as far as is asked; the message says how far it does."""


@dataclass
class Was:
    """A resource that was changed.

    Attributes:
        ref: which.
        state: what it was; None if there was none.
        changed: the newest revision that has changed it.
    """

    ref: ResourceRef
    state: Resource | None
    changed: int


async def as_of(store: Store, revision: int, newest: int, wanted: Callable[[ResourceRef], bool]) -> list[Was]:
    """Returns the resources that were changed after a revision, as they were then; the last ones changed come first.

    Args:
        store: where.
        revision: as of which.
        newest: the revision of the newest change.
        wanted: which resources.

    Raises:
        Unknown: some change since then is not in the history, or can't be read.
        StoreError: the store can't be read.
    """
    found: dict[str, Was] = {}
    at = newest
    async with aclosing(cast("Any", records(store, newest + 1))) as changes:
        async for record in changes:
            if at <= revision:
                break
            if record.revision != at:
                break  # one between is missing
            try:
                at = revision_before(record.key)
                if not any(wanted(change.ref) for change in summary_of(record).changes):
                    continue
                for change in whole(record).changes:
                    if wanted(change.ref):
                        was = found.setdefault(key_of(change.ref), Was(change.ref, None, record.revision))
                        was.state = change.before if change.HasField("before") else None
            except ValueError as error:
                raise Unknown(f"what revision {record.revision} has changed can't be read: {error}") from None
    if at > revision:
        raise Unknown(f"the history goes back to what was as of revision {at}, and not to {revision}")
    return list(found.values())
