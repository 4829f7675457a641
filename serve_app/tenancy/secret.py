"""Secrets of API keys, and the digests that stand for them.

Owns the form of a secret, `dr-<id8>-<43 base62><6 base62 checksum>`: the id is for people and logs,
the checksum refuses typing errors without asking Redis. A secret is shown once and stored nowhere;
files and Redis hold its HMAC-SHA256 under a pepper.
"""

import binascii
import contextlib
import hmac
import os
import re
import secrets
from pathlib import Path

from serve_app.tenancy.durable_file import draft
from serve_app.tenancy.refusals import Unauthorized

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
SECRET = re.compile(r"dr-([a-z0-9]{8})-([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII)


class PepperError(ValueError):
    """The pepper cannot be used; the message names the file and the remedy."""


def load_pepper(path: Path) -> bytes:
    """The secret that digests are keyed with; made (32 random bytes, mode 0600) when missing."""
    try:
        if not path.exists():
            made = draft(path, secrets.token_hex(32).encode())
            with contextlib.suppress(FileExistsError):  # whoever comes second keeps the first's
                os.link(made, path)
            made.unlink()
        pepper = path.read_bytes().strip()
    except OSError as error:
        raise PepperError(f"{path}: {error.strerror}") from None
    if len(pepper) < 32:
        raise PepperError(f"{path}: a pepper has at least 32 characters; restore the file")
    return pepper


def new_key_id() -> str:
    """Eight letters that are hard to misread."""
    return _letters(ID_LETTERS, 8)


def new_secret(key_id: str) -> str:
    """A secret of that key."""
    head = f"dr-{key_id}-{_letters(BASE62, 43)}"
    return head + _checksum(head)


def digest_of(secret: str, pepper: bytes) -> str:
    """HMAC-SHA256 in hex, under which a key is looked up.

    Raises:
        Unauthorized: not a secret of ours, or mistyped; Redis need not be asked.
    """
    match = SECRET.fullmatch(secret)
    if match is None:
        raise Unauthorized("malformed")
    head = f"dr-{match[1]}-{match[2]}"
    if not hmac.compare_digest(_checksum(head), match[3]):
        raise Unauthorized("malformed")
    return hmac.new(pepper, secret.encode(), "sha256").hexdigest()


def _checksum(head: str) -> str:
    value, letters = binascii.crc32(head.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        letters = BASE62[digit] + letters
    return letters


def _letters(alphabet: str, count: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(count))
