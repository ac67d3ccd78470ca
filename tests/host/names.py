"""A name server and an issuer on loopback, for names that do not resolve, move, or are somebody else's."""

import base64
import http.server
import json
import socket
import ssl
import struct
import subprocess
import threading
import time

NXDOMAIN, SERVFAIL, SILENT = 3, 2, "silent"


class NameServer:
    """Answers questions for one address (RFC 1035): with an address, an error or not at all."""

    def __init__(self, address="127.0.0.1"):
        self.says, self.asked = NXDOMAIN, 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                question, client = self._socket.recvfrom(512)
            except OSError:
                return
            self.asked += 1
            if self.says == SILENT:
                continue
            # One question: its name ends with a zero, then type and class.
            end = question.index(b"\0", 12) + 5
            wants_address = struct.unpack("!H", question[end - 4:end - 2])[0] == 1
            answers, code = b"", self.says
            if isinstance(self.says, str):
                code = 0
                if wants_address:
                    answers = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(self.says)
            head = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 1 if answers else 0, 0, 0)
            self._socket.sendto(head + question[12:end] + answers, client)

    def close(self):
        self._socket.close()


class Issuer:
    """Signs tokens with openssl; serves its key by TLS, at one address after the other."""

    def __init__(self, host, name, port, place, path=""):
        at = name if port == 443 else f"{name}:{port}"
        self._host, self.url, self._port, self._place, self._path = host, f"https://{at}{path}", port, place, path
        host.run("mkdir", "-p", place)
        shell(host, f"""
            cd {place}
            openssl req -quiet -x509 -newkey rsa:2048 -nodes -days 30 -keyout ca.key -out ca.pem -subj '/CN=names of the tests' \
                -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
            openssl req -quiet -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj '/CN={name}'
            printf 'subjectAltName=DNS:{name}\\nbasicConstraints=critical,CA:FALSE\\n' > tls.ext
            openssl x509 -req -days 30 -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile tls.ext -out tls.pem""")
        self.ca = f"{place}/ca.pem"
        self._server, self.heard = None, 0
        self.rotate("first")

    def rotate(self, kid):
        self.kid = kid
        shell(self._host, f"openssl genrsa -out {self._place}/{kid}.key 2048")
        modulus = self._host.text("openssl", "rsa", "-in", f"{self._place}/{kid}.key", "-modulus", "-noout").split("=")[1]
        self._key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": part(bytes.fromhex(modulus)), "e": "AQAB"}

    def serve_at(self, address):
        """Elsewhere, and no longer where it was."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
        documents = {
            f"{self._path}/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"},
            f"{self._path}/jwks": {"keys": [self._key]},
        }
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.heard += 1
                text = json.dumps(documents.get(self.path, {})).encode()
                self.send_response(200 if self.path in documents else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._host.path(f"{self._place}/tls.pem"), self._host.path(f"{self._place}/tls.key"))
        self._server = http.server.ThreadingHTTPServer((address, self._port), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def token(self, subject, audience, **claims):
        now = int(time.time())
        head = {"alg": "RS256", "typ": "at+jwt", "kid": self.kid}
        base = {"iss": self.url, "sub": subject, "aud": audience, "client_id": subject, "iat": now, "exp": now + 3600, "jti": str(now)}
        claims = base | claims
        signed = ".".join(part(json.dumps(value).encode()) for value in (head, claims))
        key = self._host.path(f"{self._place}/{self.kid}.key")
        done = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=signed.encode(), stdout=subprocess.PIPE, check=True)
        return f"{signed}.{part(done.stdout)}"


def part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def shell(host, script):
    host.run("sh", "-ec", script)
