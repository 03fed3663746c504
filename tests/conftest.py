"""What every suite shares.

A suite that needs a program which is not there is left out, and the run says so by name:

    pytestmark = pytest.mark.needs("promtool")

With MESHWARDEN_REQUIRE_ALL_SUITES set, as in `.ci/run`, a suite left out fails the run.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time: a machine may be busy. In CI a run is the same each time.
settings.register_profile(
    "meshwarden", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
# `make fuzz`: other input each time, and a lot of it.
settings.register_profile("fuzz", settings.get_profile("meshwarden"), derandomize=False, max_examples=5_000)
# `make mutants`: some hundreds of runs, so little each.
settings.register_profile("mutants", settings.get_profile("meshwarden"), derandomize=True, max_examples=25)
settings.load_profile("fuzz" if os.environ.get("MESHWARDEN_FUZZ") else "meshwarden")

# Which package brings a program.
PACKAGES = {
    "promtool": "Debian's prometheus (make deps)",
    "prometheus": "Debian's prometheus (make deps)",
    "prometheus-alertmanager": "Debian's prometheus-alertmanager (make deps)",
    "amtool": "Debian's prometheus-alertmanager (make deps)",
    "node": "Node.js 20 or newer",
    "npm": "Node.js 20 or newer",
    "curl": "curl (make deps)",
    "chromium": "Debian's chromium (make deps)",
}
LEFT_OUT = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture(scope="session")
async def event_loop_of_all(anyio_backend: str) -> AsyncIterator[asyncio.AbstractEventLoop]:
    """One event loop for all async tests of a process.

    grpc.aio has one queue of events a process, which whoever runs a loop empties. What a call that was cancelled
    at the end of a test still had to say went to that test's loop, closed by then, and failed the test after it.
    """
    yield asyncio.get_running_loop()  # noqa: PT022 - until then the runner is held


@pytest.fixture(autouse=True)
def own_tasks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends what an async test leaves running, as the end of its own loop would."""
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    loop = request.getfixturevalue("event_loop_of_all")
    before = asyncio.all_tasks(loop)
    yield
    loop.run_until_complete(_end(asyncio.all_tasks(loop) - before))


async def _end(tasks: Collection["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = {}
    config.addinivalue_line("markers", "needs(*programs): leave the suite out where one of the programs is missing")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("needs"):
            for program in marker.args:
                if shutil.which(program) is None:
                    reason = f"needs {program}: install {PACKAGES[program]}"
                    config.stash[LEFT_OUT][item.nodeid.partition("::")[0]] = reason
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    result = yield
    skipped = {report.nodeid.partition("::")[0]: report for report in terminalreporter.stats.get("skipped", [])}
    for suite, report in sorted(skipped.items()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"LEFT OUT {suite}: {reason}", yellow=True)
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and os.environ.get("MESHWARDEN_REQUIRE_ALL_SUITES") and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
