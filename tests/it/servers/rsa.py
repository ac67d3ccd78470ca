"""RSA with no library's scruples: keys that nobody should have, and signatures of whatever is asked for.

    rsa.py make KIND     a private JWK: `short` (1024 bits), `roca` (CVE-2017-15361), `one` and `two` (the exponents)
    rsa.py sign          {"key": a private JWK, "blocks": [base64url, …]} on standard input; a list of signatures
"""

import base64
import json
import secrets
import sys

SMALL = [p for p in range(2, 1000) if all(p % q for q in range(2, int(p ** 0.5) + 1))]


def is_prime(n):
    if any(n % p == 0 for p in SMALL):
        return False
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(20):
        x = pow(secrets.randbelow(n - 3) + 2, odd, n)
        if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def ordinary(bits):
    """The two highest bits are set, so that a product of two has all its bits."""
    while True:
        n = secrets.randbits(bits) | 3 << (bits - 2) | 1
        if is_prime(n) and n % 65537 != 1:
            return n


def roca():
    """What the library in Infineon's chips made of 1024 bits: k * M + 65537 ** a mod M."""
    product = 1
    for p in SMALL[:126]:
        product *= p
    while True:
        n = secrets.randbits(1024 - product.bit_length()) * product + pow(65537, secrets.randbits(64), product)
        if n >> 1022 == 3 and is_prime(n) and n % 65537 != 1:
            return n


def make(kind):
    p, q = {"short": lambda: (ordinary(512), ordinary(512)), "roca": lambda: (roca(), roca())}.get(
        kind, lambda: (ordinary(1024), ordinary(1024)))()
    e = {"one": 1, "two": 2}.get(kind, 65537)
    # No number undoes squaring: what it signs with the power of one is no signature of anybody.
    d = 1 if kind == "two" else pow(e, -1, (p - 1) * (q - 1))
    return {"kty": "RSA", "n": text(p * q), "e": text(e), "d": text(d)}


def sign(key, blocks):
    n, e, d = (number(key[name]) for name in "ned")
    size = (n.bit_length() + 7) // 8
    signatures = [pow(number(block), d, n) for block in blocks]
    if e % 2:
        assert all(pow(s, e, n) == number(block) % n for s, block in zip(signatures, blocks))
    return [text(s, size) for s in signatures]


def number(value):
    return int.from_bytes(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)), "big")


def text(value, size=None):
    size = size or max(1, (value.bit_length() + 7) // 8)
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).decode().rstrip("=")


if sys.argv[1] == "make":
    print(json.dumps(make(sys.argv[2])))
else:
    order = json.load(sys.stdin)
    print(json.dumps(sign(order["key"], order["blocks"])))
