"""Clients that ask once, keep their connections open and do nothing more.

Their ends are descriptors of another process than the gateway's. Opens as many as it is told, says
`open`, and then says for each line that it reads how many of them were closed.
"""

import socket
import sys

AT_ONCE = 100
# Who waits longer is told so, rather than waiting for good.
PATIENCE = 60


def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    request = f"GET /mcp HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    held = []
    socket.setdefaulttimeout(PATIENCE)
    while len(held) < count:
        new = [
            socket.create_connection((host, port))
            for _ in range(min(AT_ONCE, count - len(held)))
        ]
        for connection in new:
            connection.sendall(request)
        for connection in new:
            assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        held += new
    print("open", flush=True)
    for connection in held:
        connection.setblocking(False)
    closed = 0
    for _ in sys.stdin:
        left = []
        for connection in held:
            try:
                connection.recv(4096)
                connection.close()
                closed += 1
            except BlockingIOError:
                left.append(connection)
            except OSError:
                closed += 1
        held = left
        print(closed, flush=True)


main()
