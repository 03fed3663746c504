"""What `up` and `down` touch of a directory, and what they leave alone."""

import fcntl
from pathlib import Path

import pytest

from meshwarden.controlplane.local import context, lock
from meshwarden.controlplane.local.down import down
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.plan import Options, Plan


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Somebody's project that happens to have names of ours."""
    directory = tmp_path / "project"
    (directory / "operator").mkdir(parents=True)
    (directory / "operator" / "code.py").write_text("precious")
    (directory / "up.json").write_text("{}")
    (directory / "processes.json").write_text("[]")
    return directory


def content(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_down_leaves_a_directory_alone_that_no_mesh_has_run_on(stranger: Path) -> None:
    before = content(stranger)
    assert not down(stranger, print)
    assert content(stranger) == before


def test_up_takes_no_directory_that_holds_something_else(stranger: Path, tmp_path: Path) -> None:
    before = content(stranger)
    with pytest.raises(LocalError, match="holds something else") as caught:
        lock.make_ours(Plan(stranger))
    assert "--state-dir DIR" in caught.value.fix
    assert content(stranger) == before
    lock.make_ours(Plan(tmp_path / "new" / "deep"))
    (tmp_path / "empty").mkdir()
    lock.make_ours(Plan(tmp_path / "empty"))


def test_a_directory_of_ours_is_taken_again_and_tidied_up(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "mesh")
    lock.make_ours(plan)
    with lock.alone(plan):
        plan.operator.mkdir()
        plan.up_json.write_text("{}")
    lock.make_ours(plan)
    context.put("mesh", context.Context("127.0.0.1:1", "ca", "cert", "key", str(plan.state_dir)))
    assert not down(plan.state_dir, print)
    assert content(plan.state_dir) == {"up.lock"}
    assert context.load() == ("", {})


def test_what_pointed_to_each_region_is_taken_away(tmp_path: Path) -> None:
    plans = Options(tmp_path / "mesh", regions=("eu", "us")).plans()
    lock.make_ours(plans[0])
    with lock.alone(plans[0]):
        for plan in plans:
            plan.operator.mkdir(parents=True)
            plan.server.mkdir()
            plan.server_json.write_text("{}")
            context.put(f"mesh-{plan.region}", context.Context("127.0.0.1:1", "ca", "c", "k", str(plan.state_dir)))
    assert not down(plans[0].state_dir, print)
    assert not any(plan.operator.exists() or plan.server_json.exists() for plan in plans)
    assert context.load() == ("", {})


def test_down_does_not_touch_a_mesh_that_is_just_starting(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "mesh")
    lock.make_ours(plan)
    plan.lock.touch()
    plan.up_json.write_text("{}")
    with plan.lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="just starting"):
            down(plan.state_dir, print)
    assert plan.up_json.exists()


def test_a_home_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(LocalError, match="no home directory") as caught:
        context.load()
    assert caught.value.fix == "set HOME, or XDG_CONFIG_HOME"


def test_contexts_that_cannot_be_written_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(LocalError, match="Not a directory") as caught:
        context.refuse_unwritable()
    assert "XDG_CONFIG_HOME" in caught.value.fix
