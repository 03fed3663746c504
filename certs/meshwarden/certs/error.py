"""The root of this package's exceptions."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

# What `cryptography` raises on input that it can't read; its `InvalidVersion` is no ValueError.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class CertsError(Exception):
    """Something about an identity isn't right; the message says what, where, and what to do."""
