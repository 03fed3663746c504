"""What made a revision that no trace is known of."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from meshwarden.controlplane.identity.record import NODES, TOKENS
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.history import keys_changed
from meshwarden.controlplane.store.port import Compacted, Future, Store, StoreError

_MAX_NAMED: Final = 8


async def described(store: Store, revision: int, shown: Callable[[str], bool], *, is_whole: bool) -> str:
    """Says what a revision changed, for who finds no trace of it.

    Args:
        store: of the mesh.
        revision: any number.
        shown: whether the caller may see a tenant.
        is_whole: whether it may see what is no tenant's.
    """
    try:
        keys = await keys_changed(store, revision)
    except Future as error:
        return f"there is no such revision yet, the newest is {error.revision}"
    except Compacted:
        return "not any more, and the store has forgotten what it changed: it remembers that for an hour"
    except StoreError as error:
        return f"not yet, not any more, or not for you to see; what it changed can't be read now: {error}"
    if not keys:
        return "it changed nothing: a lease of the control plane's own took it"
    named = list(dict.fromkeys(_named(keys, shown, is_whole=is_whole)))
    if not named:
        return "not yet, not any more, or not for you to see"
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return f"not yet, or not any more; it changed {', '.join(named[:_MAX_NAMED])}{more}"


def _named(keys: Iterable[str], shown: Callable[[str], bool], *, is_whole: bool) -> Iterator[str]:
    for key in keys:
        if key.startswith(model.ROOT):
            try:
                ref = model.parse_key(key)
            except ValueError:  # of a newer version
                continue
            if shown(ref.tenant):
                yield model.title(ref)
        elif is_whole and key.startswith(NODES):
            yield f"node {key.removeprefix(NODES)}"
        elif is_whole and key.startswith(TOKENS):
            yield "join tokens"
