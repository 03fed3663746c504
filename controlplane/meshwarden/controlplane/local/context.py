"""Contexts: which meshes this user knows and which one commands talk to. The file holds paths, never keys."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meshwarden.controlplane.local.error import LocalError, NoContext
from meshwarden.controlplane.local.record import write_private

CONFIG_FIX = "your contexts are kept below ~/.config: set XDG_CONFIG_HOME to a directory that you may write"


@dataclass(frozen=True)
class Context:
    """Where a mesh is and how we show who we are."""

    address: str
    ca_file: str
    cert_file: str
    key_file: str
    state_dir: str = ""
    agent_sockets: tuple[str, ...] = field(default=())


def contexts_file() -> Path:
    """`${XDG_CONFIG_HOME:-~/.config}/meshwarden/contexts.json`.

    Raises:
        LocalError: there is no home directory.
    """
    return xdg_directory("XDG_CONFIG_HOME", ".config") / "meshwarden" / "contexts.json"


def xdg_directory(variable: str, below_home: str) -> Path:
    """A directory of this user's: as the environment says, or below the home directory.

    Raises:
        LocalError: there is no home directory.
    """
    if given := os.environ.get(variable):
        return Path(given)
    try:
        return Path.home() / below_home
    except RuntimeError:
        raise LocalError("this user has no home directory", f"set HOME, or {variable}") from None


def load() -> tuple[str, dict[str, Context]]:
    """Returns the current context's name (empty: none) and {name: context}.

    Raises:
        LocalError: the file is no contexts file.
    """
    path = contexts_file()
    try:
        data = json.loads(path.read_text())
        contexts = {name: _parse(value) for name, value in data["contexts"].items()}
        return str(data["current"] or ""), contexts
    except FileNotFoundError:
        return "", {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocalError(f"{path}: not a contexts file: {error!r}", f"remove it: rm {path}") from None
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}", CONFIG_FIX) from None


def _parse(value: dict[str, Any]) -> Context:
    known = {key: value[key] for key in Context.__dataclass_fields__ if key in value}
    return Context(**{**known, "agent_sockets": tuple(known.get("agent_sockets", ()))})


def get(name: str | None) -> tuple[str, Context]:
    """Returns the named context, or the current one, with its name.

    Raises:
        NoContext: there is none.
    """
    current, contexts = load()
    name = name or current
    if not name:
        raise NoContext("no context: this machine knows no mesh", "start one with `meshwarden up`")
    if name not in contexts:
        fix = f"known: {', '.join(sorted(contexts))}" if contexts else "start a mesh with `meshwarden up`"
        raise NoContext(f"no context {name!r}", fix)
    return name, contexts[name]


def refuse_unwritable() -> None:
    """Sees that a context could be written.

    Raises:
        LocalError: it could not, and what to do.
    """
    with _changing():
        pass


def put(name: str, context: Context) -> None:
    """Writes a context and makes it the current one."""
    with _changing() as (_, contexts):
        contexts[name] = context
        _save(name, contexts)


def use(name: str) -> None:
    """Makes a context the current one.

    Raises:
        NoContext: there is no such context.
    """
    get(name)
    with _changing() as (_, contexts):
        _save(name, contexts)


def remove(name: str) -> None:
    """Removes a context, if it is there; the next one in order becomes current."""
    with _changing() as (current, contexts):
        contexts.pop(name, None)
        _save(current if current in contexts else next(iter(sorted(contexts)), ""), contexts)


@contextlib.contextmanager
def _changing() -> Iterator[tuple[str, dict[str, Context]]]:
    # Two `up`s beside each other write at once: one at a time.
    path = contexts_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(path.with_suffix(".lock"), "w", opener=_private)  # noqa: SIM115 - held by the `with` below
    except OSError as error:
        raise LocalError(f"{error.filename}: {error.strerror}", CONFIG_FIX) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield load()


def _save(current: str, contexts: dict[str, Context]) -> None:
    known = {name: asdict(value) for name, value in contexts.items()}
    write_private(contexts_file(), json.dumps({"current": current, "contexts": known}))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
