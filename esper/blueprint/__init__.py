"""Blueprints as data: a layout-free graph of operators, and everything decided or derived from it.

Read in this order: ir, operators, check, canonical, matching, plan, infer, lower, emit.
The specification is docs/blueprint-ir.md.
"""
