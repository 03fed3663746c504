import signal
import subprocess
import sys

from meshwarden.sdk.stop import Stop

# Waits anew all the time while its child signals: handlers run at every step of that.
PROGRAM = """
import os, random, signal
from meshwarden.sdk.stop import Stop

SIGNALS = 5000
stop, pid = Stop(), os.getpid()
if os.fork() == 0:
    for _ in range(SIGNALS):
        os.kill(pid, signal.SIGTERM)
        for _ in range(random.randrange(300)):
            pass
    os._exit(0)
heard = 0
while os.waitpid(-1, os.WNOHANG) == (0, 0):
    heard += stop.wait(0.0001)
while stop.wait(0.1):
    heard += 1
print(heard)
"""


def test_signals_are_heard_whatever_the_main_thread_does() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_who_is_not_told_to_stop_goes_on() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop = Stop()
        assert not stop.wait(0.0)
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(0.0)
        assert not stop.wait(0.0)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
