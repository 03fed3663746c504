"""What programs that run have on disk."""

import os
from collections.abc import Iterator
from pathlib import Path


def written(directory: Path, name: str = "") -> Iterator[tuple[Path, bytes]]:
    """All files below a directory with what is in them, or those of a name; whatever goes meanwhile is left out.

    `Path.rglob` ends with an error where a directory goes while it is there.
    """
    for parent, _, names in os.walk(directory):
        for found in names:
            path = Path(parent, found)
            if name in ("", found) and path.is_file():
                try:
                    yield path, path.read_bytes()
                except FileNotFoundError:
                    continue
