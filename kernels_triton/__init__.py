"""Triton kernels, one file per op of esper.ops and of the same name. They import torch and triton only."""
