"""The way to the control plane of another region.

The peer proves by its certificate that it is the control plane of that region: its name is below one that no entry and
no request can obtain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.issue import region_dns_name
from meshwarden.certs.svid import X509Svid
from meshwarden.v1.region_service_pb2_grpc import RegionServiceStub

_MESSAGE_BYTES: Final = 4 << 20
_KEEPALIVE_MS: Final = 20_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000


@dataclass(frozen=True)
class Peer:
    """A region that is asked.

    Attributes:
        region: its name.
        address: of its control plane, `host:port`.
    """

    region: str
    address: str


@dataclass(frozen=True)
class Own:
    """Who asks.

    Attributes:
        trust_domain: ours, and the peer's.
        svid: our present certificate.
        bundles: what the peer's must lead to.
    """

    trust_domain: str
    svid: Callable[[], X509Svid | None]
    bundles: Callable[[], Mapping[str, Bundle]]


class Link:
    """A connection to one region, made anew when our certificate is another, or what the peer's must lead to."""

    def __init__(self, peer: Peer, own: Own) -> None:
        self.peer, self._own = peer, own
        self._channel: grpc.aio.Channel | None = None
        self._shown: tuple[X509Svid, Bundle] | None = None

    async def stub(self) -> Any:
        """Returns what to call by; no call runs on one that was returned before.

        Raises:
            OSError: there is nothing to prove ourselves by yet.
        """
        svid = self._own.svid()
        if svid is None:
            raise OSError("there is no certificate of ours yet")
        bundle = self._own.bundles()[self._own.trust_domain]
        if self._channel is None or self._shown is None or svid is not self._shown[0] or bundle is not self._shown[1]:
            await self.close()
            self._channel = grpc.aio.secure_channel(
                self.peer.address,
                grpc.ssl_channel_credentials(bundle.pem(), svid.key_pem(), svid.chain_pem()),
                options=[
                    ("grpc.ssl_target_name_override", region_dns_name(self._own.trust_domain, self.peer.region)),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                    # A connection whose other end has vanished without a word is given up after these.
                    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                    ("grpc.initial_reconnect_backoff_ms", 200),
                    ("grpc.max_reconnect_backoff_ms", 2_000),
                    ("grpc.enable_http_proxy", 0),
                ],
            )
            self._shown = svid, bundle
        return RegionServiceStub(self._channel)

    async def close(self) -> None:
        """Ends the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
