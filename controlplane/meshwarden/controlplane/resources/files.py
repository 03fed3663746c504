"""Where manifests come from: files, directories, standard input. The one place of this room that reads files."""

import sys
from collections.abc import Iterable
from pathlib import Path

from meshwarden.controlplane.resources.manifest import Fault, ManifestFaults
from meshwarden.controlplane.resources.tree import MAX_BYTES

SUFFIXES = (".yaml", ".yml", ".json")


def read_texts(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Reads manifests as (source, text): of a directory every manifest below it, of "-" the standard input.

    Raises:
        ManifestFaults: a file can't be read, is too large or no text, or a directory has no manifest.
    """
    texts: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for name in paths:
        path = Path(name)
        try:
            if name == "-":
                texts.append(("stdin", sys.stdin.buffer.read(MAX_BYTES + 1).decode()))
            elif path.is_dir():
                below = sorted(item for item in path.rglob("*") if item.suffix in SUFFIXES and item.is_file())
                if not below:
                    faults.append(Fault(name, 0, "", f"no manifest below it ({', '.join(SUFFIXES)})"))
                texts += [(str(item), _read(item)) for item in below]
            else:
                texts.append((name, _read(path)))
        except OSError as error:
            faults.append(Fault(str(error.filename or name), 0, "", error.strerror or str(error)))
        except UnicodeDecodeError:
            faults.append(Fault(name, 0, "", "is not UTF-8 text"))
    if faults:
        raise ManifestFaults(faults)
    return texts


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1).decode()
