import itertools
import os
import random
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from certs_build import HOUR, NOW
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs import files
from meshwarden.certs.bundle import MAX_ROOTS, Bundle, InvalidBundle
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import InvalidSvid, X509Svid, new_key
from meshwarden.v1 import node_service_pb2

ROOT_KEY = new_key()
ROOT = self_signed_root("a.test", ROOT_KEY, NOW)
WEB = SpiffeId.workload("a.test", "acme", "web")


def svid() -> X509Svid:
    key = new_key()
    return X509Svid.of(issue_leaf(LeafTemplate(WEB, HOUR), key.public_key(), IssuerKey(ROOT_KEY, (ROOT,)), NOW), key)


def test_goes_through_pem_and_back() -> None:
    made = svid()
    read = X509Svid.load(made.chain_pem(), made.key_pem())
    assert read.spiffe_id == WEB
    assert read.chain_der() == made.chain_der()
    assert read.key_der() == made.key_der()
    assert read.not_after - read.not_before == HOUR


def test_the_key_never_shows() -> None:
    made = svid()
    assert "PRIVATE" not in f"{made!r} {made}"
    assert "key" not in repr(made)


def test_another_key_is_refused() -> None:
    with pytest.raises(InvalidSvid, match="key"):
        X509Svid.load(svid().chain_pem(), svid().key_pem())


def test_a_root_is_no_svid() -> None:
    with pytest.raises(InvalidSvid):
        X509Svid.of((ROOT,), ROOT_KEY)
    with pytest.raises(InvalidSvid):
        X509Svid.of((), ROOT_KEY)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_noise_is_refused(chain: bytes, key: bytes) -> None:
    with pytest.raises(InvalidSvid):
        X509Svid.load(chain, key)


def test_a_bundle_goes_through_its_forms_and_back() -> None:
    bundle = Bundle.of("a.test", [ROOT, ROOT], 7)
    assert bundle.roots == (ROOT,)
    assert Bundle.from_proto(bundle.to_proto()) == bundle
    assert Bundle.parse_pem("a.test", bundle.pem(), 7) == bundle


@pytest.mark.parametrize(
    "message",
    [
        node_service_pb2.Bundle(trust_domain="a.test"),
        node_service_pb2.Bundle(trust_domain="A.test", roots=Bundle.of("a.test", [ROOT]).ders),
        node_service_pb2.Bundle(trust_domain="a.test", roots=[b"noise"]),
        node_service_pb2.Bundle(trust_domain="a.test", roots=[b"\x30" * 20000]),
        node_service_pb2.Bundle(trust_domain="a.test", roots=Bundle.of("a.test", [ROOT]).ders * (MAX_ROOTS + 1)),
        node_service_pb2.Bundle(trust_domain="a.test", roots=svid().chain_der()),
    ],
    ids=["empty", "trust domain", "noise", "large", "many", "a leaf"],
)
def test_bundles_are_checked(message: node_service_pb2.Bundle) -> None:
    with pytest.raises(InvalidBundle):
        Bundle.from_proto(message)


def test_renews_at_half_life_give_or_take_a_tenth() -> None:
    rng = random.Random(1)
    at = [renew_at(NOW, NOW + HOUR, rng) - NOW for _ in range(1000)]
    assert timedelta(minutes=27) <= min(at) < timedelta(minutes=28)
    assert timedelta(minutes=32) < max(at) <= timedelta(minutes=33)


def test_files_of_two_generations_are_of_different_seconds(tmp_path: Path) -> None:
    """GRPC knows by whole seconds that a key and a certificate were replaced between its reading one and the other."""
    times = []
    for number in range(5):
        files.publish(tmp_path, {"tls.crt": b"%d" % number, "tls.key": b"%d" % number})
        times.append({int((tmp_path / name).stat().st_mtime) for name in ("tls.crt", "tls.key")})
    assert all(max(before) < min(after) for before, after in itertools.pairwise(times))
    # Whoever they are for may set any time.
    present = min(times[0])
    for absurd in (0, 2**33):
        os.utime(tmp_path / "tls.crt", (absurd, absurd))
        files.publish(tmp_path, {"tls.crt": b"new", "tls.key": b"new"})
        assert present <= int((tmp_path / "tls.crt").stat().st_mtime) < present + 3600


def test_publishes_private_files_that_replace_each_other(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "creds"
    files.publish(place, {"tls.crt": b"1", "tls.key": b"1", "old": b"1"})
    files.publish(place, {"tls.crt": b"2", "tls.key": b"2"})
    assert files.read(place, "tls.crt", "tls.key") == (b"2", b"2")
    assert (place / "tls.key").read_bytes() == b"2"
    assert not os.path.lexists(place / "old")
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "tls.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in place.iterdir() if path.is_symlink()) == ["..data", "tls.crt", "tls.key"]
    assert len(list(place.iterdir())) == 4


def test_a_crash_leaves_the_old_files_and_is_swept_up(tmp_path: Path) -> None:
    files.publish(tmp_path, {"tls.key": b"1"})
    (tmp_path / "..torn").mkdir()
    (tmp_path / "..torn.link").symlink_to("..torn")
    files.publish(tmp_path, {"tls.key": b"2"})
    assert not os.path.lexists(tmp_path / "..torn")
    assert not os.path.lexists(tmp_path / "..torn.link")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "..data", ".hidden", "a\0"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain"):
        files.publish(tmp_path / "x", {name: b""})
    assert not (tmp_path / "x").exists()


def test_readers_never_see_two_generations(tmp_path: Path) -> None:
    files.publish(tmp_path, {"tls.crt": b"0", "tls.key": b"0"})
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(200):
                content = str(number).encode()
                files.publish(tmp_path, {"tls.crt": content, "tls.key": content})
        except BaseException as error:  # what a thread raises must fail the test
            failures.append(error)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        certificate, key = files.read(tmp_path, "tls.crt", "tls.key")
        assert certificate == key
    writer.join()
    assert not failures
