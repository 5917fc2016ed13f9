"""The gatekeeper's look at a kernel before anything of it runs: its files, its size and what it says it costs."""

from esper.artifact.body import REQUIRED_FILES, Body
from esper.artifact.contents import Contents
from esper.blueprint.infer import infer
from esper.urabrask.checks import Finding

MAX_PARAMETERS = 1 << 28
MAX_FLOPS_PER_POSITION = 1 << 31


def check_static(contents: Contents) -> Finding:
    """No file that no check reads, and a cost that is the graph's own and within limits."""
    body = contents.body
    if odd := unread_files(body):
        return Finding(
            False,
            f"holds {', '.join(odd)[:200]}; only {', '.join(REQUIRED_FILES)} are evaluated, and what is not may not be "
            "promoted with them",
        )
    if body.parameter_count > MAX_PARAMETERS:
        return Finding(False, f"has {body.parameter_count} parameters; at most {MAX_PARAMETERS}")
    flops = body.forward_flops_per_position
    if flops > MAX_FLOPS_PER_POSITION:
        return Finding(False, f"says {flops} operations per position; at most {MAX_FLOPS_PER_POSITION}")
    own = infer(contents.graph, body.interface).forward_flops_per_position
    if flops != own:
        return Finding(False, f"says {flops} operations per position; its graph has {own}")
    return Finding(True, f"{body.parameter_count} parameters, {flops} operations per position, {len(body.files)} files")


def unread_files(body: Body) -> list[str]:
    """Names of files that a signature would cover and no check looks at, e.g. native code."""
    return sorted(set(body.files) - set(REQUIRED_FILES))
