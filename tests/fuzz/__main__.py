"""Feeds each target with whatever reaches more of its code: `make fuzz`.

    python tests/fuzz --seconds 300           all targets, the time shared among them
    python tests/fuzz --seconds 60 csr jwt    some
    python tests/fuzz --again FILE            what one has failed at, once more

What a target fails at is kept in .fuzz/failed, what reached new code in .fuzz/corpus, for the next time.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FAILED, CORPUS = ROOT / ".fuzz" / "failed", ROOT / ".fuzz" / "corpus"
HANG_S, SIZE_BYTES, MEMORY_MIB = 20, 64 * 1024, 2048
sys.path.insert(0, str(HERE))


def explore(name: str, seconds: int) -> None:
    """Runs one target in this process, and ends it."""
    import atheris  # ours alone to have: `make test` runs the targets without it

    with atheris.instrument_imports(include=["meshwarden"]):
        from target import TARGETS
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    FAILED.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-max_len={SIZE_BYTES}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={FAILED}/{name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], TARGETS[name].feed)
    atheris.Fuzz()


def run(name: str, seconds: int) -> bool:
    """Whether a target stood all that it was fed with."""
    command = [sys.executable, "-W", "ignore", str(HERE), "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    runs = [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    verdict = "" if done.returncode == 0 else ": FAILED"
    print(f"{name}: {runs[0] if runs else '?'} runs in {seconds} s{verdict}", flush=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "Instrumenting" not in line]
        print("\n".join(said[-60:]))
        print(f"once more: make fuzz ARGS='--again FILE', with the file that is named above, in {FAILED}")
    return done.returncode == 0


def main() -> int:
    """Runs targets, each in a process of its own; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="which; default all")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--again", type=Path, help="feed a target with a file that it has failed at")
    chosen = parser.parse_args()
    if chosen.one:
        explore(chosen.one, chosen.seconds)
        return 0
    from target import TARGETS, again

    if chosen.again:
        again(chosen.again)
        print("it stands that")
        return 0
    if wrong := set(chosen.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(wrong))}: there are {', '.join(TARGETS)}")
    names = chosen.targets or list(TARGETS)
    results = [run(name, max(1, chosen.seconds // len(names))) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
