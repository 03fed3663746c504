"""Generates the dashboards: deploy/grafana/dashboards/*.json.

python deploy/grafana/generate.py            write them
python deploy/grafana/generate.py --check    say whether they are as they would be written; `make check` does
"""

import sys
from pathlib import Path

from cost import COST
from limits import LIMITS
from nbmf import MEMORY
from objectives import OBJECTIVES
from parts import IDENTITY, NODE
from traffic import OVERVIEW, SERVICE, TENANTS

BOARDS = (OVERVIEW, TENANTS, SERVICE, NODE, IDENTITY, LIMITS, OBJECTIVES, COST, MEMORY)
DIRECTORY = Path(__file__).with_name("dashboards")


def main() -> int:
    """Writes or checks; returns the exit status."""
    wanted = {DIRECTORY / f"{board.uid}.json": board.to_json() for board in BOARDS}
    if "--check" in sys.argv[1:]:
        there = {path: path.read_text() for path in DIRECTORY.glob("*.json")}
        wrong = sorted(path.name for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
        for name in wrong:
            print(f"{name}: not as generated; run `python deploy/grafana/generate.py`", file=sys.stderr)
        return 1 if wrong else 0
    for path in set(DIRECTORY.glob("*.json")) - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
