"""Passwords as salted scrypt hashes (RFC 7914), with the cost that OWASP names for 16 MiB."""

import asyncio
import hashlib
import secrets

_COST = {"n": 2**14, "r": 8, "p": 5}
_NOBODY = "00" * 16 + ":" + "00" * 64


async def hash_password(password: str) -> str:
    """Salt and hash, to be stored. In a thread: it takes a tenth of a second on purpose."""
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{(await asyncio.to_thread(_scrypt, password, salt)).hex()}"


async def is_password(password: str, stored: str | None) -> bool:
    """Whether it is the password; takes as long if there is no such user, and says no."""
    salt, _, wanted = (stored or _NOBODY).partition(":")
    found = await asyncio.to_thread(_scrypt, password, bytes.fromhex(salt))
    return secrets.compare_digest(found.hex(), wanted)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **_COST)
