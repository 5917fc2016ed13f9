"""Rule of a low-rank pair: a loop over its ranks. When one is drawn in, and why so: pairs.py."""

from esper.tezzeret.rule import Adjoint, Names, Rule


def _low_rank_forward(n: Names) -> tuple[str, ...]:
    i, (down, _, *bias) = n.number, n.parameters
    return (
        f"outer{i} = {_rounded(f'tl.where(inside, {n.inputs[0]}, 0.0)', down)}",
        f"{n.out} = tl.zeros([ROWS, COLS], tl.float32){''.join(f' + {one}' for one in bias)}",
        *_each_rank(n),
        f"    {n.out} += inner{i} * up{i}",
    )


def _low_rank_backward(n: Names) -> Adjoint:
    """The matrices' gradients are products over all positions, torch's: their factors are kept for it."""
    i, c, rank, (_, up, *bias) = n.number, n.channels, _rank(n), n.parameters
    lines = (
        f"row{i} = sample * positions + position  # [ROWS]",
        f"all{i} = row{i}[:, None] * {c} + channel[None, :]",
        f"behind{i} = {_rounded(f'tl.where(inside, {n.d}, 0.0)', up)}",
        *(
            f"tl.store({word}{i}_ptr + all{i}, {word}{i}.to({word}{i}_ptr.dtype.element_ty), mask=inside)"
            for word in ("outer", "behind")
        ),
        f"ahead{i} = tl.zeros([ROWS, COLS], tl.float32)",
        *_each_rank(n),
        f"    within{i} = {_rounded(f'tl.sum(behind{i} * up{i}, axis=1)[:, None]', up)}",
        f"    ahead{i} += within{i} * down{i}",
        f"    one{i} = row{i}[:, None] * {rank} + rank{i}",
        *(
            f"    tl.store({word}{i}_ptr + one{i}, {word}{i}.to({word}{i}_ptr.dtype.element_ty), "
            "mask=(position < positions)[:, None])"
            for word in ("inner", "within")
        ),
    )
    return Adjoint(lines, (f"ahead{i}",), ("", "", *(n.d for _ in bias)))


def _each_rank(n: Names) -> tuple[str, ...]:
    """The head of a loop: a row of the first matrix, a column of the second, and the values between them."""
    i, c, rank, (down, up, *_) = n.number, n.channels, _rank(n), n.parameters
    tail = f"mask=channel < {c}, other=0).to(tl.float32)[None, :]"
    return (
        f"for rank{i} in range({rank}):",
        f"    down{i} = tl.load({down}_ptr + rank{i} * {c} + channel, {tail}",
        f"    up{i} = tl.load({up}_ptr + channel * {rank} + rank{i}, {tail}",
        f"    inner{i} = {_rounded(f'tl.sum(outer{i} * down{i}, axis=1)[:, None]', down)}  # [ROWS, 1]",
    )


def _rank(n: Names) -> int:
    return int(n.attributes["rank"])


def _rounded(value: str, matrix: str) -> str:
    """To the matrix's type, as torch rounds both factors of a product."""
    return f"{value}.to({matrix}_ptr.dtype.element_ty).to(tl.float32)"


RULES: dict[str, Rule] = {"low_rank": Rule(_low_rank_forward, _low_rank_backward)}
