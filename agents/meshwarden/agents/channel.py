"""The way to the control plane: one channel a generation of the node's certificate, swapped without a lost call.

The next channel is made beside the present one; calls that run on the old one end there, and the last of them closes it
(closing it at once cancels them: a third of the calls was lost where that was tried).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import grpc

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid

_MAX_MESSAGE_BYTES: Final = 64 << 20
_KEEPALIVE_MS: Final = 20_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
_ANSWER_S: Final = 5.0


class Away(OSError):
    """There is no way to the control plane."""


class ControlPlane:
    """Where the control plane is: at one address, or at several, each of which serves all of the mesh.

    Attributes:
        address: `host:port`, the one of the moment.
        addresses: all, the preferred first.
        trust_domain: whose control plane it must prove to be, at whatever address.
        interceptors: go around the calls to it.
    """

    def __init__(
        self, addresses: str | Sequence[str], trust_domain: str, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
    ) -> None:
        self.addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        self.address = self.addresses[0]
        self.trust_domain, self.interceptors = trust_domain, interceptors

    def in_turn(self) -> Iterator[str]:
        """Makes each address that of the moment, the preferred first; whoever is content with one stays there."""
        for address in self.addresses:
            self.address = address
            yield address

    def at(self, address: str) -> "ControlPlane":
        """The one at that address alone."""
        return ControlPlane(address, self.trust_domain, self.interceptors)

    @property
    def server_name(self) -> str:
        """The DNS name in its certificate, which no entry and no request can obtain."""
        return f"controlplane.{self.trust_domain}"


def open_channel(control_plane: ControlPlane, bundle: Bundle, svid: X509Svid | None) -> grpc.aio.Channel:
    """A TLS channel that verifies the control plane; without `svid` the caller is anonymous, as for Attest."""
    key, chain = (svid.key_pem(), svid.chain_pem()) if svid is not None else (None, None)
    return grpc.aio.secure_channel(
        control_plane.address,
        grpc.ssl_channel_credentials(bundle.pem(), key, chain),
        interceptors=list(control_plane.interceptors),
        options=[
            ("grpc.ssl_target_name_override", control_plane.server_name),
            # A shared subchannel would go on with the old certificate.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.enable_http_proxy", 0),
            # Its pings would pass through the control plane's front and back after each push.
            ("grpc.http2.bdp_probe", 0),
        ],
    )


@contextlib.asynccontextmanager
async def answering(control_plane: ControlPlane, bundle: Bundle, svid: X509Svid) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that has shaken hands, for as long as it is of use.

    Raises:
        Away: that takes too long.
    """
    async with open_channel(control_plane, bundle, svid) as channel:
        try:
            async with asyncio.timeout(_ANSWER_S):
                await channel.channel_ready()
        except TimeoutError:
            raise Away(f"{control_plane.address} does not answer") from None
        yield channel


class Generation:
    """A channel that is closed when it is retired and its last user has left."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self.channel, self.address = channel, address
        self.retiring = asyncio.Event()
        """Set when another takes its place: long calls should move there."""
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[grpc.aio.Channel]:
        """Keeps the channel open for a call."""
        self._users += 1
        self._idle.clear()
        try:
            yield self.channel
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def retire(self) -> None:
        """Closes the channel once nobody uses it; cancelled, at once."""
        self.retiring.set()
        try:
            await self._idle.wait()
        finally:
            await self.channel.close()
