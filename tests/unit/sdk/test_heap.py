"""The collector leaves alone what a process has started with, and nothing that comes later."""

import subprocess
import sys

_PROGRAM = """
import gc, weakref
from meshwarden.sdk.heap import settle

class Ring:
    def __init__(self):
        self.ring = self

before = Ring()
garbage = weakref.ref(Ring())
settle()
assert garbage() is None, "what was garbage at the start has stayed"
known = set(map(id, gc.get_objects()))
assert id(before) not in known, "what was there is still looked at"

most = 3 * gc.get_threshold()[0]
alive = []
for number in range(most):
    ring = Ring()
    alive.append(weakref.ref(ring))
    del ring
left = sum(one() is not None for one in alive)
print(left, most)
assert left <= gc.get_threshold()[0], "cycles that come later are not collected in time"
gc.collect()
assert not any(one() is not None for one in alive)
"""


def test_it_leaves_alone_what_is_there_and_collects_what_comes() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
