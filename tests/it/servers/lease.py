"""Holds a lease on a file: who opens it, an exec too, hangs until the end of this one's input.

Says `held`, and `asked` when somebody opens it. The kernel lets nobody wait longer than
/proc/sys/fs/lease-break-time.
"""

import fcntl
import os
import signal
import sys

file = os.open(sys.argv[1], os.O_RDONLY)
signal.signal(signal.SIGIO, lambda *_: os.write(1, b"asked\n"))
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.write(1, b"held\n")
while os.read(0, 1):
    pass
