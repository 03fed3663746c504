"""The way to the control plane of another region.

The peer proves by its certificate that it is the control plane of that region: its name is below one that no entry and
no request can obtain.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import grpc
import structlog

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.error import CertsError
from meshwarden.certs.issue import region_dns_name
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.store.port import StoreError
from meshwarden.v1.region_service_pb2_grpc import RegionServiceStub

INTERVAL_S: Final = 2.0
ANSWER_S: Final = 5.0
_MESSAGE_BYTES: Final = 4 << 20
_KEEPALIVE_MS: Final = 20_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000


log = structlog.get_logger()


class Untrue(Exception):
    """No control plane of ours would say so."""


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


async def keep_asking(link: Link, ask: Callable[[Link], Awaitable[None]], rng: random.Random) -> None:
    """Asks a region every two seconds until it is cancelled; what goes wrong is said once.

    Args:
        link: the way there, which is closed at the end.
        ask: asks once; may raise Untrue or a CertsError for what it is told, and what calls and the store raise.
        rng: spreads tries.
    """
    said = ""
    try:
        while True:
            complaint = ""
            try:
                await ask(link)
            except grpc.aio.AioRpcError as error:
                complaint = f"{error.code().name}: {error.details()}"
            except (Untrue, CertsError, StoreError, OSError) as error:
                complaint = f"{type(error).__name__}: {error}"
            if complaint and complaint != said:
                log.warning("region.not_heard", region=link.peer.region, reason=complaint)
            said = complaint
            await anyio.sleep(INTERVAL_S * rng.uniform(0.5, 1.0))
    finally:
        with anyio.CancelScope(shield=True):
            await link.close()
