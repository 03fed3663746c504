"""Mutation testing of what says whether a peer's certificates prove an identity: `make mutants`.

Each mutant is run under the tests in a process of its own, which is forked with everything loaded but what is mutated.
A mutant that all tests pass is alive, and a fault of the tests; unless it does what the original does, for a reason
that stands in `EQUIVALENT`. Prints each that lives, and fails if there is any, or if one of `EQUIVALENT` died.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "unit" / "certs")]

import certs_fault  # noqa: E402, F401 - its certificates are made once, not in every child
import cryptography.x509.verification  # noqa: E402, F401
import hypothesis  # noqa: E402, F401
import jwt  # noqa: E402, F401
import pytest  # noqa: E402
from equivalent import EQUIVALENT  # noqa: E402
from mutant import Mutant, mutants  # noqa: E402

CERTS = ROOT / "certs" / "meshwarden" / "certs"
# {module: the tests that hold it}
MUTATED = {
    "verify": ("test_verify.py", "test_foreign_id.py"),
    "issued": ("test_issued.py",),
    "deny": ("test_deny.py",),
    "spiffe_id": ("test_spiffe_id.py", "test_foreign_id.py"),
    "csr": ("test_csr.py",),
    "crl": ("test_crl.py",),
    "possession": ("test_possession.py",),
    "jwt_svid": ("test_jwt_svid.py",),
}
TIMEOUT_S = 120
ALIVE, DEAD = 0, 1


def run(module: str, mutant: Mutant, tests: tuple[str, ...]) -> bool:
    """Whether a mutant lives."""
    child = os.fork()
    if child == 0:
        code = DEAD
        try:
            signal.alarm(TIMEOUT_S)  # one that never ends is dead too
            code = _in_child(module, mutant, tests)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == ALIVE


def _in_child(module: str, mutant: Mutant, tests: tuple[str, ...]) -> int:
    name = f"meshwarden.certs.{module}"
    _forget_users_of(name)
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(CERTS / f"{module}.py"))
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        exec(compile(mutant.source, str(CERTS / f"{module}.py"), "exec"), made.__dict__)  # noqa: S102 - ours, changed
        paths = [str(ROOT / "tests" / "unit" / "certs" / test) for test in tests]
        # What is loaded already is what pytest would warn of.
        quiet = ("-o", "filterwarnings=ignore::pytest.PytestAssertRewriteWarning")
        flags = ["-x", "-q", "--hypothesis-profile=mutants", *quiet, f"--rootdir={ROOT}"]
        flags += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        return ALIVE if pytest.main([*flags, *paths]) == 0 else DEAD


def _forget_users_of(name: str) -> None:
    """Has what was made with a module made again, with the mutated one: no test shall see the original."""
    if name not in sys.modules:
        return
    for loaded in list(sys.modules):
        if loaded in ("certs_build", "certs_fault") or f"{loaded}.".startswith("meshwarden.certs."):
            del sys.modules[loaded]


def main() -> int:
    """Runs all mutants; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(MUTATED), help="which; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    wrong = False
    for module in chosen.modules:
        begun_s, alive = time.monotonic(), set()
        source = (CERTS / f"{module}.py").read_text()
        if not run(module, Mutant(0, "", source), MUTATED[module]):
            print(f"{module}.py: the tests fail without any mutation")
            return 1
        found = list(mutants(source))
        with ThreadPoolExecutor(chosen.jobs) as pool:
            verdicts = pool.map(partial(run, module, tests=MUTATED[module]), found)
            for mutant, lives in zip(found, verdicts, strict=True):
                if lives:
                    alive.add(mutant.what)
                    if mutant.what not in EQUIVALENT[module]:
                        wrong = True
                        print(f"alive: {module}.py:{mutant.line}: {mutant.what}", flush=True)
        for what in EQUIVALENT[module].keys() - alive:
            wrong = True
            print(f"{module}.py: not equivalent, for it died, or there is none such: {what}")
        equal = len(alive & EQUIVALENT[module].keys())
        took_s = time.monotonic() - begun_s
        print(f"{module}.py: {len(found)} mutants, {len(found) - len(alive)} dead, {equal} equivalent, {took_s:.0f} s")
    return int(wrong)


if __name__ == "__main__":
    with contextlib.suppress(io.UnsupportedOperation):
        sys.stdout.flush()
    sys.exit(main())
