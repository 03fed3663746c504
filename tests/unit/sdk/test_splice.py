"""Two ends of a splice end together, and what has ended is left alone."""

import asyncio

from meshwarden.sdk.mtls.splice import End


class Wire(asyncio.Transport):
    """A transport that notes what is done to it; like Python 3.11's TLS it takes no abort once it is lost."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self.done: list[str] = []
        end.connection_made(self)

    def is_reading(self) -> bool:
        return True

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        assert "lost" not in self.done
        self.done.append("abort")

    def lose(self) -> None:
        self.done.append("lost")
        self.end.connection_lost(None)


def joined() -> tuple[Wire, Wire]:
    near, far = (Wire(End(lambda: None, lambda: None, flush_s=0.0)) for _ in range(2))
    near.end.join(far.end)
    return near, far


async def turns() -> None:
    """Lets every timer of no length run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_end_that_has_ended_too_is_not_aborted_later() -> None:
    near, far = joined()
    near.lose()
    far.lose()
    await turns()
    near.end.abort()
    assert (near.done, far.done) == (["lost"], ["close", "lost"])


async def test_an_end_that_does_not_end_is_aborted() -> None:
    near, far = joined()
    near.lose()
    await turns()
    assert far.done == ["close", "abort"]
