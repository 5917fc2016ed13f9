"""Architectures of the package `torch_geometric`: networks on graphs, whose rows are nodes."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from bench.flow.architectures import Architecture, drawn


def geometric_architectures() -> dict[str, Architecture]:
    """Name -> architecture. Imports the package when it is called; ImportError where it is absent."""
    nn: Any = importlib.import_module("torch_geometric.nn")
    shape = {"in_channels": 6, "hidden_channels": 16, "num_layers": 3, "out_channels": 4, "dropout": 0.2}
    return {
        "gcn": Architecture(lambda: nn.GCN(**shape), _graph, [nn.GCNConv]),
        "gat": Architecture(lambda: nn.GAT(**shape, heads=2), _graph, [nn.GATConv]),
    }


def _graph() -> Mapping[str, Any]:
    """A ring of nine nodes and two chords, each edge in both directions."""
    there = torch.arange(9)
    edges = torch.stack([there, (there + 1) % 9])
    edges = torch.cat([edges, torch.tensor([[0, 2], [4, 7]])], 1)
    return {"x": drawn(9, 6), "edge_index": torch.cat([edges, edges.flip(0)], 1)}
