"""Files published for another user: they are that user's, and their directory is not."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshwarden.certs import files

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root may give files away")


@pytest.fixture
def place() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="mw-"))
    base.chmod(0o711)
    yield base / "credentials"
    shutil.rmtree(base)


def run(uid: int, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, user=uid, group=uid, capture_output=True, text=True, check=False)


def test_its_user_reads_them_and_nobody_else(place: Path) -> None:
    for content in (b"1", b"2"):
        files.publish(place, {"tls.key": content}, NOBODY, NOBODY)
        assert run(NOBODY, "/bin/cat", str(place / "tls.key")).stdout == content.decode()
        assert "Permission denied" in run(NOBODY - 1, "/bin/cat", str(place / "tls.key")).stderr


def test_its_user_puts_nothing_where_the_publisher_writes(place: Path) -> None:
    files.publish(place, {"tls.key": b"1"}, NOBODY, NOBODY)
    assert place.stat().st_uid == 0
    assert "Permission denied" in run(NOBODY, "/bin/ln", "-s", "/etc", str(place / "..data.x")).stderr
    # One of an older release, that was its user's, is taken back.
    os.chown(place, NOBODY, NOBODY)
    files.publish(place, {"tls.key": b"2"}, NOBODY, NOBODY)
    assert place.stat().st_uid == 0
    assert run(NOBODY, "/bin/cat", str(place / "tls.key")).stdout == "2"


def test_a_user_that_fills_its_directory_stops_nothing(place: Path) -> None:
    files.publish(place, {"tls.key": b"1"}, NOBODY, NOBODY)
    deeper_than_python = 'cd "$0" && for i in $(seq 1500); do mkdir a && cd a || exit; done'
    assert run(NOBODY, "/bin/sh", "-c", deeper_than_python, str(place / "..data/")).returncode == 0
    files.publish(place, {"tls.key": b"2"}, NOBODY, NOBODY)
    assert files.read(place, "tls.key") == (b"2",)
    assert len([path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
    assert run(NOBODY, "/bin/sh", "-c", deeper_than_python, str(place / "..data/")).returncode == 0
    files.remove(place)
    assert not place.exists()
    place.mkdir()
