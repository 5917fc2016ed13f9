"""Interfaces and parents that generation is tried on."""

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES

INTERFACES = [
    Interface(Kind.MAP2D, 16),
    Interface(Kind.VECTOR, 12),
    Interface(Kind.TOKENS, 24),
    Interface(Kind.TOKENS, 8, causal=True),
    Interface(Kind.MAP1D, 5, causal=True),
]
PARENTS = {blueprint_id(template.graph): template.graph for template in TEMPLATES.values()}
