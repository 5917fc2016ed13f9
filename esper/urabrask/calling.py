"""Correctness however a kernel is called: tensors of any layout, with and without gradients.

A form has no mode of its own, train or eval: it is a function of tensors. What differs
between training and inference is whether gradients are wanted, of what, and whether
autograd is there at all.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from esper.artifact.agree import difference, differences, tensor_names
from esper.artifact.script import CompiledForm
from esper.urabrask.checks import Finding
from esper.urabrask.subject import FLOOR, Subject, limit_of


def check_layout(subject: Subject) -> Finding:
    """Value and gradients equal the reference's for tensors that are not contiguous: permuted and strided ones."""
    h = subject.middle(seed=11)
    names = tensor_names(subject.lowered)
    want = _outcome(subject.reference, [tensor.double() for tensor in (h, *subject.weights)])
    for word, change in (("permuted", _permuted), ("strided", _strided)):
        given = [change(tensor) for tensor in (h, *subject.weights)]
        seen, lowered = [
            differences([tensor.double() for tensor in _outcome(form, given)], want, FLOOR[h.dtype])
            for form in (subject.form, subject.lowering)
        ]
        for form_word, found in (("compiled form", seen), ("lowering", lowered)):
            for name, off, own in zip(names, found, lowered, strict=True):
                limit = limit_of(h.dtype, own)
                if not off <= limit:
                    return Finding(
                        False,
                        f"{name} of the {form_word} is off by {off:.3g} of the largest value for {word} tensors, "
                        f"limit {limit:.3g}",
                    )
    return Finding(True, f"{len(names)} tensors equal for permuted and strided input and parameters")


def check_modes(subject: Subject) -> Finding:
    """The value is the reference's whether gradients are wanted or not, and so is each gradient when others are not."""
    for dtype in dict.fromkeys((subject.interface.dtype, torch.float64)):
        tensors = [t.to(dtype) for t in (subject.middle(seed=12), *subject.weights)]
        want = _outcome(subject.reference, [tensor.double() for tensor in tensors])
        of_value = difference(subject.lowering(*tensors).detach().double(), want[0], 0.0)
        limit = limit_of(dtype, of_value)
        for mode, value in _values(subject.form, tensors):
            seen = difference(value.double(), want[0], 0.0)
            if not seen <= limit:
                return Finding(False, f"output {mode} is off by {seen:.3g} of the largest value, limit {limit:.3g}")
        for mode, wanted in (("input", slice(0, 1)), ("parameters", slice(1, None))):
            if not tensors[wanted]:
                continue
            part = [want[0], *want[1:][wanted]]
            seen_of, lowered = [
                differences(_doubles(form, tensors, wanted), part, FLOOR[dtype])
                for form in (subject.form, subject.lowering)
            ]
            if not all(off <= limit_of(dtype, own) for off, own in zip(seen_of, lowered, strict=True)):
                return Finding(False, f"value or gradient differs where a gradient is wanted of the {mode} only")
    return Finding(True, "equal with gradients of all, of the input, of the parameters, without any, and in inference")


def _values(form: CompiledForm, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The value in each mode, three calls each: TorchScript optimises after the first."""
    for mode, context in (("without gradients", torch.no_grad), ("in inference mode", torch.inference_mode)):
        with context():
            for _ in range(3):
                yield mode, form(*[tensor.clone() for tensor in tensors]).clone()


def _outcome(form: CompiledForm, tensors: Sequence[Tensor], wanted: slice = slice(None)) -> list[Tensor]:
    """Value, and gradients by the `wanted` tensors, which keep their strides; as agree.outcome otherwise."""
    leaves = [tensor.detach() for tensor in tensors]
    for leaf in leaves[wanted]:
        leaf.requires_grad_()
    out = form(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves[wanted])]


def _doubles(form: CompiledForm, tensors: Sequence[Tensor], wanted: slice = slice(None)) -> list[Tensor]:
    """`_outcome` of copies, in float64."""
    return [tensor.double() for tensor in _outcome(form, [tensor.clone() for tensor in tensors], wanted)]


def _permuted(tensor: Tensor) -> Tensor:
    """The same values, first and last dimension swapped in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _strided(tensor: Tensor) -> Tensor:
    """The same values, every second element of memory twice as large."""
    return tensor.repeat_interleave(2, -1)[..., ::2]
