"""Executes its arguments on a host that lacks a system call: as far as they can tell.

A filter answers ENOSYS to the call of the first argument, a number that is that of every machine:
444, landlock_create_ruleset(2), or 435, clone3(2).
"""

import ctypes
import os
import struct
import sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, NOT_THERE = 0x7FFF0000, 0x50000 | 38
PROGRAM = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, int(sys.argv[1])), (RETURN, 0, 0, NOT_THERE), (RETURN, 0, 0, ALLOW)]
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2

code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in PROGRAM))
program = ctypes.create_string_buffer(struct.pack("HP", len(PROGRAM), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, program):
    sys.exit("the filter was not taken")
os.execv(sys.argv[2], sys.argv[2:])
