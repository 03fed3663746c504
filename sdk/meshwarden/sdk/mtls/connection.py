"""Who is at the other end of an accepted socket: by its certificate chain (TLS) or by the kernel's word (Unix).

Errors: `PeerUnknown`, the kernel does not vouch for the process at the other end (it is dead, or of another namespace).
"""

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.svid import InvalidSvid, id_of
from meshwarden.sdk.mtls.crowd import ANONYMOUS

SO_PEERPIDFD: Final = 77  # asm-generic/socket.h; the socket module has no name for it
_UCRED: Final = struct.Struct("3i")
_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER


class PeerUnknown(Exception):
    """The process at the other end of a Unix socket cannot be told."""


class Session(Protocol):
    """What a caller shows in place of a certificate, of which it has the chain."""

    def over(self) -> str:
        """Why its calls are taken no more; empty if they are."""
        ...


@dataclass(frozen=True, eq=False)
class Connection:
    """One accepted connection.

    Attributes:
        id: unique in this process.
        local: the address that was connected to, `host:port` or the path of the Unix socket.
        remote: who connected, as text for logs and audit.
        chain_der: TLS: what the client presented, leaf first, DER; verified against the listener's roots as a whole,
            not yet against its trust domain's. Empty if it presented nothing, and on Unix sockets.
        pid: Unix: the process that connected; None on TLS, as are the next four.
        uid: its effective user.
        gid: its effective group.
        start_time: when the process started, in clock ticks since boot; with the pid it names a process for good.
        pidfd: becomes readable when the process ends. Closed with the connection: `os.dup` it to keep it.
        session: stands for `chain_der`, where that was not presented on this connection; None where it was.
    """

    id: int
    local: str
    remote: str
    chain_der: tuple[bytes, ...] = field(default=(), repr=False)
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    start_time: int | None = None
    pidfd: int | None = None
    session: Session | None = None

    @classmethod
    def of_process(cls, process: "Process", number: int, local: str) -> "Connection":
        """The connection of a process to a Unix socket."""
        return cls(
            number,
            local,
            f"pid {process.pid} of uid {process.uid}",
            pid=process.pid,
            uid=process.uid,
            gid=process.gid,
            start_time=process.start_time,
            pidfd=process.pidfd,
        )

    @property
    def owner(self) -> str:
        """Among whose connections it counts: a user's or a SPIFFE ID's; `ANONYMOUS` where none is shown."""
        if self.uid is not None:
            return f"uid {self.uid}"
        if not self.chain_der:
            return ANONYMOUS
        try:
            return str(id_of(x509.load_der_x509_certificate(self.chain_der[0])))
        except (InvalidSvid, *UNREADABLE):
            return ANONYMOUS


@dataclass(frozen=True)
class Process:
    """The process at the other end of a Unix socket. Whoever holds it closes `pidfd`."""

    pid: int
    uid: int
    gid: int
    start_time: int
    pidfd: int


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot.

    Raises:
        PeerUnknown: if there is no such process.

    Source: proc_pid_stat(5), field 22.
    """
    try:
        # The command's name stands in parentheses and may itself hold parentheses and spaces.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError) as error:
        raise PeerUnknown(f"process {pid} has ended") from error


def ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended; a zombie has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def identify(sock: socket.socket) -> Process:
    """The process that connected to a Unix socket.

    The start time is read first and the pidfd is asked afterwards: a process that still lives then was the one whose
    start time was read, because a pid is not given anew while its process lives.

    Raises:
        PeerUnknown: if that process has ended, or is outside of our pid namespace.

    Source: unix(7), SO_PEERCRED and SO_PEERPIDFD (Linux 6.5).
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid <= 0:
        raise PeerUnknown("the caller runs outside of this pid namespace")
    pidfd = _peer_pidfd(sock, pid)
    try:
        started = start_time(pid)
        if ended(pidfd):
            raise PeerUnknown(f"process {pid} has ended")
    except BaseException:
        os.close(pidfd)
        raise
    return Process(pid, uid, gid, started, pidfd)


def _peer_pidfd(sock: socket.socket, pid: int) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise PeerUnknown(f"process {pid} has ended: {error.strerror}") from error
    # Before Linux 6.5: open it by pid, and believe it only if the pid names the same process before and after.
    before = start_time(pid)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise PeerUnknown(f"process {pid} has ended: {error.strerror}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, pidfd)
        if start_time(pid) != before:
            raise PeerUnknown(f"pid {pid} was given to another process")
        undo.pop_all()
    return pidfd


def presented_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the other side presented, leaf first, DER; empty if none."""
    if tls.getpeercert(binary_form=True) is None:
        return ()  # a server's chain would then be [None]
    public: Any = getattr(tls, "get_unverified_chain", None)  # Python 3.13
    if public is not None:
        return tuple(bytes(certificate) for certificate in public())
    private: Any = tls._sslobj  # type: ignore[attr-defined]  # the only way to the chain before 3.13
    return tuple(certificate.public_bytes(_ENCODING_DER) for certificate in private.get_unverified_chain())
