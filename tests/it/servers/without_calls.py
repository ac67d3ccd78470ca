"""Executes its arguments on a host that has not these system calls: as far as they can tell.

The first argument is their numbers, with commas. A filter answers ENOSYS to each. One with
arguments (165:3=14:4=0) is there, and may not be made with these (their lower halves): EPERM.
"""

import ctypes
import os
import struct
import sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, NOT_THERE = 0x7FFF0000, 0x50000 | 38
NOT_PERMITTED = 0x50000 | 1


def rule(call):
    """What answers one call, and lets others through to the next rule."""
    number, *wanted = call.split(":")
    if not wanted:
        return [(LOAD, 0, 0, 0), (EQUAL, 0, 1, int(number)), (RETURN, 0, 0, NOT_THERE)]
    steps = [(LOAD, 0, 0), (EQUAL, int(number))]
    for argument, value in (one.split("=") for one in wanted):
        steps += [(LOAD, 0, 16 + 8 * int(argument)), (EQUAL, int(value))]
    steps.append((RETURN, 0, NOT_PERMITTED))
    return [(EQUAL, 0, len(steps) - at - 1, step[1]) if step[0] == EQUAL else (step[0], 0, 0, step[2])
            for at, step in enumerate(steps)]


PROGRAM = [*(step for call in sys.argv[1].split(",") for step in rule(call)), (RETURN, 0, 0, ALLOW)]
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2

code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in PROGRAM))
program = ctypes.create_string_buffer(struct.pack("HP", len(PROGRAM), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, program):
    sys.exit("the filter was not taken")
os.execv(sys.argv[2], sys.argv[2:])
