"""Tezzeret, the compilation forge: a blueprint and an interface go in, a signed kernel comes out."""
