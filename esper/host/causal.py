"""Find out from the gradient whether a model looks ahead of a position.

A site is causal if the model's output before a cut does not depend on the site from
the cut on, and the same holds for something the site is computed from: an input or
an embedding. The second half tells the last layers of an encoder, which nothing mixes
any more, from those of a decoder, which may also see the whole of another sequence.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree

from esper.host.layout import Layout


def is_causal(output: object, live: Tensor, layout: Layout, roots: Sequence[Tensor]) -> bool:
    """Whether a graft at a site may look at positions <= t only.

    `output` is what the model returned and `live` the site's output, both with their
    graph; `roots` are float inputs and embeddings. Positions are found by their number, in
    an output flattened over [B, T] or not. False where there is no order, or none is found.
    """
    dim = layout.position_dim
    if dim is None or live.shape[dim] < 2:
        return False
    batch, length = live.shape[layout.batch_dim], live.shape[dim]
    at_site = _looks_ahead(output, live, dim, (batch, length))
    if at_site:
        return False
    above = [root for root in roots if _gradient(live.sum(), root) is not None]
    if at_site is None:
        # nothing in the output has the site's number of positions, as of a convolution that pads and is cut; then
        # the whole way from what it is computed from to the output must not look ahead
        return any(_way_looks_ahead(output, root, layout.batch_dim, batch) is False for root in above)
    seen = [_looks_ahead(output, root, dim, (batch, length)) for root in above for dim in _dims(root, length)[:1]]
    known = [ahead for ahead in seen if ahead is not None]
    return not known or not all(known)


def _way_looks_ahead(output: object, root: Tensor, batch_dim: int, batch: int) -> bool | None:
    """Whether output before a cut depends on `root` from the cut on, in the order that both have; None: in none."""
    orders = [dim for dim in (1, 2, 0) if dim != batch_dim and dim < root.ndim and root.shape[dim] > 1]
    found = [_looks_ahead(output, root, dim, (batch, root.shape[dim])) for dim in orders]
    known = [ahead for ahead in found if ahead is not None]
    return all(known) if known else None


def _looks_ahead(output: object, live: Tensor, dim: int, size: tuple[int, int]) -> bool | None:
    """Whether output before a cut depends on `live` from the cut on; None where no output depends on it."""
    length = size[1]
    for whole, whole_dim in _with_positions(output, dim, size):
        cuts = range(length // 2, min(length // 2 + 2, length))  # two, as one could lie on the border of a patch
        ahead = [_depends(whole.narrow(whole_dim, 0, cut), live, dim, cut) for cut in cuts]
        if None not in ahead:
            return any(ahead)
    return None


def _depends(early: Tensor, live: Tensor, dim: int, cut: int) -> bool | None:
    # distinct weights, so that no symmetry of the output makes the sum's gradient vanish
    weights = torch.linspace(0.5, 1.5, early.numel(), device=early.device, dtype=early.dtype).reshape(early.shape)
    gradient = _gradient((early * weights).sum(), live)
    return None if gradient is None else bool(gradient.narrow(dim, cut, live.shape[dim] - cut).any())


def _gradient(scalar: Tensor, of: Tensor) -> Tensor | None:
    (gradient,) = torch.autograd.grad(scalar, of, retain_graph=True, allow_unused=True)
    return gradient


def _with_positions(output: object, dim: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, int]]:
    """Tensors of the output with as many positions, and the dimension these are in; the site's own first."""
    batch, length = size
    for leaf in _pytree.tree_leaves(output):
        if not isinstance(leaf, Tensor) or not leaf.requires_grad or not leaf.ndim:
            continue
        dims = _dims(leaf, length, dim)
        if dims:
            yield leaf, dims[0]
        elif leaf.shape[0] == batch * length:
            yield leaf.unflatten(0, (length, batch) if dim == 0 else (batch, length)), min(dim, 1)


def _dims(tensor: Tensor, length: int, first: int = 1) -> list[int]:
    """Dimensions of that length; the batch's place comes last."""
    return [d for d in dict.fromkeys((first, 1, 2, 0)) if d < tensor.ndim > 1 and tensor.shape[d] == length]
