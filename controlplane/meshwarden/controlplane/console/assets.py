"""The files of the console as a browser gets them: what is listed here when it starts is served, and nothing else.

A path is looked up and never joined to a directory, so that no path leads out of it.

Source: W3C Content Security Policy Level 3; W3C Trusted Types; RFC 9110 §8.8.3 (ETag), §12.5.3 (Accept-Encoding).
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static"
ROOT: Final = "/console/"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
"""What the page may do: run its own files, ask its own origin, and stand in nobody's frame."""
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_HEADERS: Final = (
    # Asked for each time, and answered 304 as long as it is the same: no page runs with scripts of another version.
    ("cache-control", "no-cache"),
    ("vary", "accept-encoding"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
_COMPRESS_FROM: Final = 1024
_SHRINKING: Final = frozenset({".html", ".js", ".css", ".json", ".svg"})


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        body: as it lies in the tree.
        small: the same by gzip; empty where that isn't smaller.
        tag: its ETag, a weak one: it is that of both.
        headers: what else is said of it.
    """

    body: bytes
    small: bytes
    tag: str
    headers: tuple[tuple[str, str], ...]


def load(directory: Path = STATIC, root: str = ROOT, policy: str = POLICY) -> Mapping[str, Asset]:
    """Reads all files of a directory: {path of the URL: asset}; its index.html is at `root` itself.

    Files of a type that no page needs are left out.

    Args:
        directory: what is served.
        root: below which path, "/console/".
        policy: the Content-Security-Policy of each.
    """
    found: dict[str, Asset] = {}
    for file in sorted(directory.rglob("*")):
        if file.suffix in _TYPES and file.is_file():
            name = file.relative_to(directory).as_posix()
            made = of(file.read_bytes(), file.suffix, policy)
            found[root + name] = made
            if name == "index.html":
                found[root] = made
    return found


def of(body: bytes, suffix: str, policy: str = POLICY) -> Asset:
    """Returns an asset of these bytes; `suffix` says what they are, ".js"."""
    small = gzip.compress(body, mtime=0) if suffix in _SHRINKING and len(body) >= _COMPRESS_FROM else b""
    headers = (("content-type", _TYPES[suffix]), ("content-security-policy", policy), *_HEADERS)
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Asset(body, small if len(small) < len(body) else b"", tag, headers)
