"""The key that the cache and the node's own key are encrypted under.

    $CREDENTIALS_DIRECTORY/meshwarden-cache-key   given by systemd, which can seal it to a TPM
    <state_dir>/cache-key                         made here otherwise, 0600

Whoever reads the disk alone has no use of a cache whose key systemd gives. A key that lies beside its cache keeps those
out who get one of the two files: a backup of the cache, or a disk that was not erased in part.

Errors: `KeyUnusable`, what systemd gives is no key.
"""

from pathlib import Path
from typing import Final

from meshwarden.agents.config import ConfigError
from meshwarden.certs.seal import KEY_BYTES, KeyFile, Seal

CREDENTIAL: Final = "meshwarden-cache-key"
_MAX_CREDENTIAL_BYTES: Final = 4096


class KeyUnusable(ConfigError):
    """What was given as a key is none; the message says why and what to do."""


def given_secret(directory: str | None) -> bytes | None:
    """The secret that systemd gives in its directory of credentials; None if it gives none.

    Raises:
        KeyUnusable: it gives something else.
    """
    if not directory:
        return None
    path = Path(directory) / CREDENTIAL
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_CREDENTIAL_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from None
    if not KEY_BYTES <= len(content) <= _MAX_CREDENTIAL_BYTES:
        fix = f"head -c 32 /dev/urandom | systemd-creds encrypt --name={CREDENTIAL} - FILE"
        raise KeyUnusable(
            f"{path}: {KEY_BYTES} to {_MAX_CREDENTIAL_BYTES} bytes are a key, this has {len(content)}: {fix}"
        )
    return content


def seals(directory: str | None, path: Path) -> tuple[Seal, ...]:
    """Returns what opens the node's own key, that first which closes it; none if no key can be kept.

    Args:
        directory: of systemd's credentials.
        path: of our own key file, which is made if systemd gives no key.

    Raises:
        KeyUnusable: what systemd gives is no key.
    """
    given = given_secret(directory)
    if given is None:
        file = KeyFile(path)
        return (Seal(file.secret),) if file.is_kept else ()
    # What was closed before systemd gave one is closed anew.
    old = KeyFile.find(path)
    return (Seal(given), Seal(old)) if old is not None else (Seal(given),)
