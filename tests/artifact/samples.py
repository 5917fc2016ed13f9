"""Kernels and keys to try things on: compiled once, signed by a forge and an evaluation engine of the tests' own."""

import functools

import torch

from esper.artifact.attest import PROMOTED
from esper.artifact.bundle import Artifact, sign
from esper.artifact.keys import SigningKey, TrustRoots
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import compile_kernel

FORGE, EVALUATION, STRANGER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
ROOTS = TrustRoots(forge=(FORGE.public_key,), evaluation=(EVALUATION.public_key,))
MAP = Interface(Kind.MAP2D, 8)


@functools.cache
def built(title: str = "conv3", interface: Interface = MAP) -> Artifact:
    """A template's kernel as the forge hands it over."""
    return compile_kernel(TEMPLATES[title].graph, interface, "cpu", "fast", FORGE)


def promoted(title: str = "conv3", interface: Interface = MAP) -> Artifact:
    """The same as it may be loaded."""
    return sign(built(title, interface), EVALUATION, PROMOTED, {"report_id": "0" * 64})


def flipped(data: bytes, at: int = -1) -> bytes:
    """The same bytes with one bit of one of them changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def leaves(interface: Interface, weights: dict[str, torch.Tensor], *positions: int) -> list[torch.Tensor]:
    """An input and parameters to differentiate by."""
    generator = torch.Generator().manual_seed(3)
    h = interface.example(3, *positions, generator=generator)
    drawn = [torch.randn(w.shape, generator=generator).to(w.dtype) for w in weights.values()]
    return [tensor.requires_grad_() for tensor in (h, *drawn)]
