"""Statements about an artifact: who did what to it, signed over its id, so none fits another artifact."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from esper.api.common.v1.artifact_pb2 import Attestation
from esper.artifact import canonical_json
from esper.artifact.keys import SigningKey, TrustRoots, key_id, signed_by
from esper.errors import InvalidRequest, Untrusted

Role: TypeAlias = "Attestation.Role.ValueType"
BUILT, PROMOTED = Attestation.ROLE_BUILT, Attestation.ROLE_PROMOTED

MAX_STATEMENT_BYTES = 65536
_CONTEXT = b"esper.attestation.v1"
_WORDS: dict[int, str] = {BUILT: "built", PROMOTED: "promoted"}


def word(role: Role) -> str:
    """ "built" or "promoted". Raises InvalidRequest for another role."""
    if role not in _WORDS:
        raise InvalidRequest(f"attestation role is {role}; it must be one of {sorted(_WORDS)}")
    return _WORDS[role]


def attest(key: SigningKey, role: Role, artifact_id: str, statement: Mapping[str, Any]) -> Attestation:
    """Sign `statement`, which holds strings, whole numbers and lists or objects of them."""
    spelled = canonical_json.write(statement)
    if len(spelled) > MAX_STATEMENT_BYTES:
        raise InvalidRequest(f"the statement has {len(spelled)} bytes; at most {MAX_STATEMENT_BYTES}")
    signature = key.sign(_message(role, artifact_id, spelled))
    return Attestation(role=role, key_id=key.key_id, statement=spelled, signature=signature)


def verify(attestations: Iterable[Attestation], role: Role, artifact_id: str, roots: TrustRoots) -> dict[str, Any]:
    """The statement of the first attestation that says `role`, by a trusted key of that role, and verifies.

    Raises Untrusted, with what was wrong about each that came into question.
    """
    trusted = {key_id(public): public for public in _keys(roots, role)}
    wrong = []
    for one in attestations:
        if one.role != role:
            continue
        if one.key_id not in trusted:
            wrong.append(f"key {one.key_id[:16]!r} is no trusted {_OWNERS[role]} key")
        elif not signed_by(trusted[one.key_id], one.signature, _message(role, artifact_id, one.statement)):
            wrong.append(f"the signature by {one.key_id} does not fit this artifact and statement")
        else:
            return canonical_json.read(one.statement, f"statement by {one.key_id}", MAX_STATEMENT_BYTES)
    seen = "; ".join(dict.fromkeys(wrong)) or "there is none"
    known = ", ".join(sorted(trusted)) or "none"
    raise Untrusted(
        f'artifact {artifact_id[:64]}: no "{word(role)}" attestation to rely on: {seen}; trusted {_OWNERS[role]} keys: '
        f"{known}"
    )


_OWNERS = {BUILT: "forge", PROMOTED: "evaluation"}


def _keys(roots: TrustRoots, role: Role) -> tuple[bytes, ...]:
    word(role)
    return roots.forge if role == BUILT else roots.evaluation


def _message(role: Role, artifact_id: str, statement: bytes) -> bytes:
    return b"\0".join((_CONTEXT, word(role).encode(), artifact_id.encode(), statement))
