"""Key files: made once, for their owner alone."""

import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from esper.artifact.keys import SigningKey, TrustRoots, create_key, key_id, load_key, load_or_create_key, signed_by
from esper.errors import Conflict, Corrupt, InvalidRequest, NotFound, Untrusted


def test_a_key_file_is_its_owners_alone_and_holds_the_key(tmp_path):
    path = tmp_path / "keys" / "forge.pem"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public_key == key.public_key
    assert [one.name for one in path.parent.iterdir()] == ["forge.pem"]


def test_a_key_is_made_once(tmp_path):
    path = tmp_path / "forge.pem"
    first = create_key(path)
    with pytest.raises(Conflict, match="exists; load it"):
        create_key(path)
    assert load_or_create_key(path).public_key == first.public_key
    assert [one.name for one in tmp_path.iterdir()] == ["forge.pem"]


def test_of_many_at_once_one_makes_the_key_and_all_have_it(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_or_create_key(tmp_path / "k.pem").public_key))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o601])
def test_a_key_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "forge.pem"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(Untrusted, match=f"has mode {mode:04o}, others may read it; chmod 600"):
        load_key(path)
    with pytest.raises(Untrusted):
        load_or_create_key(path)


def test_a_link_or_a_folder_is_no_key_file(tmp_path):
    create_key(tmp_path / "real.pem")
    (tmp_path / "link.pem").symlink_to(tmp_path / "real.pem")
    (tmp_path / "folder.pem").mkdir()
    os.mkfifo(tmp_path / "pipe.pem", 0o600)
    for name in ("link.pem", "folder.pem", "pipe.pem"):
        with pytest.raises(Untrusted, match="plain file"):
            load_key(tmp_path / name)


def test_a_key_of_another_user_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "forge.pem"
    create_key(path)
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Untrusted, match="belongs to user"):
        load_key(path)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_what_is_no_ed25519_key_is_corrupt(tmp_path):
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(Corrupt, match="an ed25519 key is needed"):
        load_key(write(tmp_path / "rsa.pem", pem))
    with pytest.raises(Corrupt, match="no private key in PEM"):
        load_key(write(tmp_path / "junk.pem", b"junk"))
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(Corrupt, match="no private key in PEM"):
        load_key(write(tmp_path / "locked.pem", locked))
    with pytest.raises(NotFound, match="create_key makes one"):
        load_key(tmp_path / "absent.pem")


def test_a_key_does_not_show_itself():
    key = SigningKey.generate()
    assert repr(key) == f"SigningKey({key.key_id})"
    assert key.key_id == key_id(key.public_key)


def test_a_signature_is_one_keys_over_one_message():
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"message")
    assert signature == key.sign(b"message")
    assert signed_by(key.public_key, signature, b"message")
    assert not signed_by(key.public_key, signature, b"messagf")
    assert not signed_by(other.public_key, signature, b"message")
    assert not signed_by(key.public_key, signature[:-1], b"message")


def test_trust_roots_are_keys():
    with pytest.raises(InvalidRequest, match="has 31 bytes; an ed25519 key has 32"):
        TrustRoots(forge=(b"x" * 31,))
