"""Statements: believed by role, key and artifact, all three."""

import pytest

from esper.api.common.v1.artifact_pb2 import Attestation
from esper.artifact.attest import BUILT, PROMOTED, attest, verify
from esper.artifact.keys import TrustRoots
from esper.errors import InvalidRequest, Untrusted

from .samples import EVALUATION, FORGE, ROOTS, STRANGER, flipped

ID, OTHER = "a" * 64, "b" * 64
WORD = {"report_id": "r", "runs": 3}


def test_a_statement_is_read_back():
    assert verify([attest(EVALUATION, PROMOTED, ID, WORD)], PROMOTED, ID, ROOTS) == WORD


def test_the_signed_bytes_are_those_of_the_contract():
    one = attest(FORGE, BUILT, ID, {})
    assert one.signature == FORGE.sign(b"esper.attestation.v1\0built\0" + ID.encode() + b"\0{}")
    two = attest(EVALUATION, PROMOTED, ID, {"a": 1})
    assert two.signature == EVALUATION.sign(b"esper.attestation.v1\0promoted\0" + ID.encode() + b'\0{"a":1}')


def test_none_at_all_is_not_enough():
    with pytest.raises(Untrusted, match=r'no "built" attestation to rely on: there is none; trusted forge keys: '):
        verify([], BUILT, ID, ROOTS)


def test_a_key_nobody_trusts_is_named():
    with pytest.raises(Untrusted, match=f"key '{STRANGER.key_id}' is no trusted forge key"):
        verify([attest(STRANGER, BUILT, ID, WORD)], BUILT, ID, ROOTS)
    with pytest.raises(Untrusted, match="trusted forge keys: none"):
        verify([attest(FORGE, BUILT, ID, WORD)], BUILT, ID, TrustRoots())


@pytest.mark.parametrize(("key", "role"), [(FORGE, PROMOTED), (EVALUATION, BUILT)])
def test_a_key_speaks_for_its_own_role_only(key, role):
    with pytest.raises(Untrusted, match="is no trusted"):
        verify([attest(key, role, ID, WORD)], role, ID, ROOTS)


def test_a_role_does_not_become_another():
    one = attest(FORGE, BUILT, ID, WORD)
    one.role = PROMOTED
    both = TrustRoots(ROOTS.forge, ROOTS.forge)
    with pytest.raises(Untrusted, match="does not fit this artifact and statement"):
        verify([one], PROMOTED, ID, both)


def test_a_statement_moved_from_another_artifact_does_not_hold():
    with pytest.raises(Untrusted, match=f"the signature by {FORGE.key_id} does not fit this artifact"):
        verify([attest(FORGE, BUILT, OTHER, WORD)], BUILT, ID, ROOTS)


@pytest.mark.parametrize("field", ["statement", "signature"])
def test_one_flipped_bit_is_noticed(field):
    one = attest(FORGE, BUILT, ID, WORD)
    for at in range(len(getattr(one, field))):
        changed = Attestation()
        changed.CopyFrom(one)
        setattr(changed, field, flipped(getattr(one, field), at))
        with pytest.raises(Untrusted):
            verify([changed], BUILT, ID, ROOTS)


def test_one_that_holds_among_others_is_enough():
    wrong = attest(STRANGER, BUILT, ID, WORD)
    assert verify([wrong, attest(FORGE, BUILT, OTHER, {}), attest(FORGE, BUILT, ID, WORD)], BUILT, ID, ROOTS) == WORD


def test_roles_and_statements_have_bounds():
    with pytest.raises(InvalidRequest, match="attestation role is 0"):
        attest(FORGE, Attestation.ROLE_UNSPECIFIED, ID, {})
    with pytest.raises(InvalidRequest, match="attestation role is 9"):
        verify([], 9, ID, ROOTS)
    with pytest.raises(InvalidRequest, match="at most 65536"):
        attest(FORGE, BUILT, ID, {"x": "y" * 65536})
    with pytest.raises(InvalidRequest):
        attest(FORGE, BUILT, ID, {"x": 1.5})
