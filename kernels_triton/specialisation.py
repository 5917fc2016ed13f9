"""What is compiled ahead of time: a kernel with the types, constants and alignments of one call.

Every op's file has `specialisations()`, which lists its kernels as its launchers call them; `kernels_triton.aot`
compiles what it finds there.
"""

from dataclasses import dataclass

from triton.runtime import JITFunction


@dataclass(frozen=True, slots=True)
class Specialisation:
    """One kernel for one kind of call."""

    name: str  # unique among all ops; names the files
    kernel: JITFunction
    # runtime argument -> "*fp32", "i32", ...; a tuple of them for a tuple argument
    signature: dict[str, str | tuple[str, ...]]
    constants: dict[str, object]  # every tl.constexpr argument -> its value
    # runtime arguments that are divisible by 16: addresses in bytes, numbers as they are; of a tuple, all its entries
    aligned: tuple[str, ...]
    num_warps: int = 4
    vectorised: bool = True  # False: it moves too little memory for the width of its accesses to matter
