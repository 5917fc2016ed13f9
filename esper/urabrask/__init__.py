"""Urabrask, the evaluation engine: runs every kernel in isolation before anyone may use it, and alone promotes."""
