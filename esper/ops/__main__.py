"""`python -m esper.ops`: which implementation of each op runs here, and why not another."""

import importlib.metadata

import torch

from esper.ops import backends, extension


def rows() -> list[tuple[str, str, str, str]]:
    """(op, backend, chosen for, state) for every op and backend."""
    made = []
    for op in backends.OPS:
        for backend in backends.BACKENDS:
            why_not = {device: backends.why_not(backend, device) for device in backends.PREFERENCE}
            chosen = [device for device in backends.PREFERENCE if backends.chosen(device) == backend]
            able = [device for device, reason in why_not.items() if not reason]
            state = f"available on {' and '.join(able)}" if able else "; ".join(f"{d}: {r}" for d, r in why_not.items())
            made.append((op, backend, ", ".join(chosen) or "-", state))
    return made


def versions() -> list[tuple[str, str]]:
    """What is installed, and what the library was built for."""
    library = extension.load()
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    lines = [("torch", torch.__version__), ("triton", triton), ("ESPER_KERNELS", backends.requested())]
    if library.path is None:
        return [*lines, ("library", library.missing)]
    built = f"torch {library.build['torch']}, g++ {library.build['compiler']}, cuda {library.build['cuda']}"
    return [
        *lines,
        ("library", str(library.path)),
        ("built with", built),
        ("ABI target", f"torch {library.abi_target}"),
    ]


def main() -> None:
    table = [("op", "backend", "chosen for", "state"), *rows()]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
    print()
    for name, value in versions():
        print(f"{name:14}{value}")


if __name__ == "__main__":
    main()
