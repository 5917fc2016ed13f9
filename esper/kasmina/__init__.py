"""Kasmina, the execution layer: seeds in a host model, their kernels, their lives, the nursery."""
