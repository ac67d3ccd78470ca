"""The journal as an event: whoever waits for something looks again when there is something new in it."""

import os
import select
import subprocess
import time


class Journal:
    """Followed by `within`, a command that leads to the machine whose it is; nothing for this one."""

    def __init__(self, within=()):
        self._command = [*within, "journalctl", "--follow", "--lines=0", "--output=cat"]
        self._follower = None

    def until(self, what, seconds, look):
        """Looks whenever the journal has something new until there is something to see; gives it.

        And once a second, for what nobody writes there: a port that is bound, an answer of a client's.
        """
        end = time.monotonic() + seconds
        while True:
            self._hear()
            found = look()
            if found:
                return found
            left = end - time.monotonic()
            assert left > 0, f"waited {seconds} s for {what}"
            select.select([self._follower.stdout], [], [], min(left, 1))

    def end(self):
        if self._follower is not None:
            self._follower.kill()
            self._follower.wait()

    def _hear(self):
        """Takes what was said so far: what comes from here on wakes whoever waits."""
        if self._follower is None or self._follower.poll() is not None:
            self._follower = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            os.set_blocking(self._follower.stdout.fileno(), False)
        try:
            while os.read(self._follower.stdout.fileno(), 1 << 16):
                pass
        except BlockingIOError:
            pass
