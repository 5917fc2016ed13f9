"""An artifact on disk: a folder named by its id, with body.json, attestations.json and the files.

    body.json           the body, byte for byte
    attestations.json   [{"role", "key_id", "statement", "signature"}, ...]; the last two in hexadecimal

A folder appears whole or not at all. Reading interprets nothing: verify what was read.
"""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.artifact.attest import BUILT, PROMOTED, word
from esper.artifact.body import MAX_ARTIFACT_BYTES, MAX_BODY_BYTES, MAX_FILES, check_file_name
from esper.artifact.bundle import Artifact, check_id
from esper.errors import Corrupt, Exhausted, InvalidRequest, NotFound

BODY, ATTESTATIONS = "body.json", "attestations.json"
_MAX_ATTESTATIONS_BYTES = 16 << 20
_ROLES = {word(role): role for role in (BUILT, PROMOTED)}


def write_folder(artifact: Artifact, path: Path) -> bool:
    """Write `artifact` as folder `path`. False: a folder was there already, and is left as it is.

    Raises Corrupt (the id is not the body's), InvalidRequest (`path` is not named by the id, or a file name
    that is not allowed) and Exhausted (the disk is full); nothing is left at `path` then.
    """
    check_id(artifact.manifest)
    if path.name != artifact.artifact_id:
        raise InvalidRequest(f"artifact {artifact.artifact_id}: its folder must carry its id, not {path.name!r}")
    contents = {check_file_name(name): data for name, data in artifact.files.items()}
    contents[BODY] = artifact.manifest.body
    contents[ATTESTATIONS] = _write_attestations(artifact.manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        for name, data in contents.items():
            _write_file(draft / name, data)
        _sync(draft)
        draft.rename(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Exhausted(f"artifact {artifact.artifact_id}: {path} cannot be written ({error.strerror})") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def read_folder(path: Path) -> Artifact:
    """The artifact in folder `path`, as its bytes are; the id is the folder's name.

    Raises NotFound (no such folder) and Corrupt (a file that is no plain file, too large, missing or unreadable).
    """
    if not path.is_dir():
        raise NotFound(f"no artifact folder {path}")
    try:
        files = dict(_read_files(path))
    except OSError as error:
        raise Corrupt(f"artifact folder {path} cannot be read: {error}") from error
    for name, limit in ((BODY, MAX_BODY_BYTES), (ATTESTATIONS, _MAX_ATTESTATIONS_BYTES)):
        if len(files.get(name, bytes(limit + 1))) > limit:
            raise Corrupt(f"artifact folder {path}: {name} is missing, or has over {limit} bytes")
    body, attestations = files.pop(BODY), files.pop(ATTESTATIONS)
    manifest = ArtifactManifest(artifact_id=path.name, body=body, attestations=_read_attestations(path, attestations))
    return Artifact(manifest, files)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A name is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below `path` by its name there; links and other things are Corrupt."""
    total = count = 0
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            one = Path(folder, name)
            status = one.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            total, count = total + status.st_size, count + 1
            if not stat.S_ISREG(status.st_mode):
                raise Corrupt(f"artifact folder {path}: {one.relative_to(path)} is no plain file")
            if total > MAX_ARTIFACT_BYTES or count > MAX_FILES + 2:
                raise Corrupt(f"artifact folder {path}: over {MAX_ARTIFACT_BYTES} bytes, or over {MAX_FILES} files")
            with os.fdopen(os.open(one, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                yield one.relative_to(path).as_posix(), file.read(status.st_size + 1)


def _write_attestations(manifest: ArtifactManifest) -> bytes:
    listed = [
        {
            "key_id": one.key_id,
            "role": word(one.role),
            "signature": one.signature.hex(),
            "statement": one.statement.hex(),
        }
        for one in manifest.attestations
    ]
    return json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()


def _read_attestations(path: Path, data: bytes) -> Iterator[Attestation]:
    try:
        for one in json.loads(data):
            yield Attestation(
                role=_ROLES[one["role"]],
                key_id=one["key_id"],
                statement=bytes.fromhex(one["statement"]),
                signature=bytes.fromhex(one["signature"]),
            )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Corrupt(f"artifact folder {path}: {ATTESTATIONS} is not a list of attestations ({reason})") from error
