"""What `make fuzz` feeds: each target stands what it begins with, and notices what it is there to notice."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[1] / "fuzz" / "target.py"
spec = importlib.util.spec_from_file_location("fuzz_target", FUZZ)
assert spec is not None
assert spec.loader is not None
target: Any = importlib.util.module_from_spec(spec)
sys.modules["fuzz_target"] = target
spec.loader.exec_module(target)


@pytest.mark.parametrize("name", target.TARGETS)
def test_a_target_stands_what_it_begins_with(name: str) -> None:
    for seed in target.TARGETS[name].seeds():
        for data in (seed, b"", seed[: len(seed) // 2], seed + b"\0", b"\xff" + seed):
            target.TARGETS[name].feed(data)


@pytest.mark.parametrize("name", sorted(set(target.TARGETS) - {"backup", "cursor"}))
@given(data=st.binary(max_size=200))
def test_a_target_stands_noise(name: str, data: bytes) -> None:
    target.TARGETS[name].feed(data)


def test_what_a_target_fails_at_can_be_fed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spiffe_id-crash-1"
    file.write_bytes(b"spiffe://a.test/%")
    target.again(file)
    monkeypatch.setattr(target.SpiffeId, "parse", lambda text: text)
    with pytest.raises(AssertionError):
        target.again(file)
    with pytest.raises(SystemExit, match="begin with one of csr"):
        target.again(tmp_path / "crash-1")


def test_every_request_is_among_those_that_are_fed() -> None:
    assert len(target.requests()) >= 40
