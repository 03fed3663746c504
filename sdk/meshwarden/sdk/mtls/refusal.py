"""One word for a program with a refusal that it acts upon, in the trailing metadata."""

from typing import Any, Final

REFUSAL_KEY: Final = "meshwarden-refusal"
BANNED: Final = "banned"
"""The calling node is banned."""
UNKNOWN_NODE: Final = "unknown-node"
"""The calling node has to attest again."""


def refusal_of(trailing_metadata: Any) -> str:
    """The word of a call that failed, from its trailing metadata; empty if there is none.

    Believe it of a server alone whose certificate was verified: it makes agents clear away what they have.
    """
    for key, value in trailing_metadata or ():
        if key == REFUSAL_KEY and isinstance(value, str):
            return value
    return ""
