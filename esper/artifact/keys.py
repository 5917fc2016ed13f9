"""Keys that sign artifacts, and those whose signatures are believed."""

import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from esper.errors import Conflict, Corrupt, InvalidRequest, NotFound, Untrusted

PUBLIC_KEY_BYTES = 32
_MAX_KEY_FILE_BYTES = 4096


def key_id(public_key: bytes) -> str:
    """First 16 hexadecimal digits of sha256 over the public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


class SigningKey:
    """An ed25519 private key (RFC 8032). Its repr shows the key id only."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same message gives the same ones."""
        return self._private.sign(message)

    def pem(self) -> bytes:
        """PKCS 8, not encrypted: the text of a key file."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """Public keys, 32 bytes each, of the forges and evaluation engines that are believed."""

    forge: tuple[bytes, ...] = ()
    evaluation: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        for public_key in (*self.forge, *self.evaluation):
            if len(public_key) != PUBLIC_KEY_BYTES:
                raise InvalidRequest(f"a trusted key has {len(public_key)} bytes; an ed25519 key has 32")


def signed_by(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is `public_key`'s over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def create_key(path: Path) -> SigningKey:
    """Make a key and its file, readable by the owner only. Raises Conflict where the file exists."""
    key = SigningKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.pem())
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # whole or not at all, and never over another key
    except FileExistsError as error:
        raise Conflict(f"key file {path} exists; load it, or choose another path") from error
    finally:
        draft.unlink(missing_ok=True)
    return key


def load_key(path: Path) -> SigningKey:
    """Read a key file.

    Raises NotFound, Untrusted (others can read it, or it is not a plain file) and Corrupt (no ed25519 key in it).
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            data = file.read(_MAX_KEY_FILE_BYTES)
    except FileNotFoundError as error:
        raise NotFound(f"no key file {path}; create_key makes one") from error
    except OSError as error:
        raise Untrusted(f"key file {path} cannot be opened as a plain file: {error.strerror}") from error
    try:
        private = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise Corrupt(f"key file {path} holds no private key in PEM: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Corrupt(f"key file {path} holds a {type(private).__name__}; an ed25519 key is needed")
    return SigningKey(private)


def load_or_create_key(path: Path) -> SigningKey:
    """The key of `path`, made at the first call; of two processes at once one makes it and both have it."""
    try:
        return load_key(path)
    except NotFound:
        pass  # it is made below
    try:
        return create_key(path)
    except Conflict:
        return load_key(path)


def _check_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted(f"key file {path} is not a plain file")
    if found.st_mode & 0o077:
        raise Untrusted(f"key file {path} has mode {found.st_mode & 0o777:04o}, others may read it; chmod 600 {path}")
    if found.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"key file {path} belongs to user {found.st_uid}, not to this process's {os.geteuid()}")
