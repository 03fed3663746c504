"""What goes wrong in daena.

`serve` maps it to a gRPC status:

DaenaError
├── Invalid    a field of a request is not as it must be
├── Unknown    there is no such topic, record, model
├── Full       a bound is reached
├── Corrupt    a record is not what was written
├── Replaced   another stream has taken over
└── Away       something that is needed does not answer
"""


class DaenaError(Exception):
    """Says what is wrong, where, and what to do."""


class Invalid(DaenaError):
    """A field of a request is not as it must be; the message begins with its name."""


class Unknown(DaenaError):
    """What was asked for is not there."""


class Full(DaenaError):
    """A bound is reached."""


class Corrupt(DaenaError):
    """A record is not what was written."""


class Replaced(DaenaError):
    """Another stream of the same subscription has taken over."""


class Away(DaenaError):
    """Something that is needed does not answer."""
