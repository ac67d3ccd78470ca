"""An MCP server over stdio that reads no JSON: it gives back the bytes it was given.

`tools/call` answers with its arguments as they stand in the line, and with how that
line reads otherwise: a test that knows them knows every byte of both directions.
"""

import hashlib
import re
import sys

ARGUMENTS = b'"arguments":'
ID = re.compile(rb'"id":(\d+)')


def say(*parts):
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


for line in sys.stdin.buffer:
    found = ID.search(line[:200])
    if not found:
        continue
    number = found.group(1)
    head = b'{"jsonrpc":"2.0","id":' + number + b',"result":'
    if b'"server/discover"' in line[:200]:
        say(b'{"jsonrpc":"2.0","id":' + number + b',"error":{"code":-32601,"message":"no"}}')
    elif b'"initialize"' in line[:200]:
        say(head, b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"large","version":"1"}}}')
    elif b'"tools/call"' in line[:200]:
        start = line.index(ARGUMENTS) + len(ARGUMENTS)
        rest = ID.sub(b'"id":N', line[:start], count=1) + line[-4:]
        say(head, b'{"content":[{"type":"text","text":"', hashlib.sha256(rest).hexdigest().encode(), b'"}], "structuredContent" :', line[start:-3], b"}}")
    else:
        say(head, b"{}}")
