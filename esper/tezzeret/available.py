"""Which pipelines a forge has, and for which targets: the one place that says so."""

import difflib
from collections.abc import Sequence

from esper.artifact.body import PIPELINES, TARGETS
from esper.errors import InvalidConfig, Unavailable
from esper.tezzeret.compile import check_request, target_of
from esper.tezzeret.kernels import MACHINE_CODE, triton_version

CPU = "cpu"


def target_for(pipeline: str, asked: str, targets: Sequence[str]) -> str:
    """What an order is compiled for at a forge for `targets`; `asked` "": its first device.

    Raises InvalidRequest for words nobody knows, Unavailable for what this forge does not make; each names the remedy.
    """
    device = asked or next((one for one in targets if one != CPU), CPU)
    target = target_of(pipeline, device)
    check_request(target, pipeline)
    if target != CPU and target not in targets:
        raise Unavailable(
            f"this forge makes kernels for {', '.join(targets)}, not for {target}; start it with "
            f"--forge-targets {','.join([*targets, target])}, or ask for fast"
        )
    return target


def refused(asked: str, targets: Sequence[str]) -> dict[str, str]:
    """Pipeline -> why a forge for `targets` does not have it for the target `asked`."""
    reasons = {}
    for pipeline in PIPELINES:
        try:
            target_for(pipeline, asked, targets)
        except Unavailable as error:
            reasons[pipeline] = str(error)
    return reasons


def made_for(targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Pipeline -> what a forge for `targets` builds it for; without those it builds for nothing."""
    found = {
        pipeline: tuple(one for one in (CPU, *targets) if target_of(pipeline, one) == one and _made(pipeline, one))
        for pipeline in PIPELINES
    }
    return {pipeline: tuple(dict.fromkeys(where)) for pipeline, where in found.items() if where}


def check_targets(names: Sequence[str]) -> tuple[str, ...]:
    """`names` as a forge takes them: cpu first, since every forge makes TorchScript, and none twice.

    Raises InvalidConfig for a name that is no target, and for a device where Triton is not installed.
    """
    known = ", ".join(TARGETS)
    for name in names:
        if name not in TARGETS:
            near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.0)[0]
            raise InvalidConfig(f"--forge-targets: {name!r} is no target; the nearest is {near}, and all are {known}")
        if name in MACHINE_CODE and not triton_version():
            raise InvalidConfig(
                f"--forge-targets: kernels for {name} are made by Triton, which is not installed; "
                "pip install 'esper[triton]', or leave it out"
            )
    return tuple(dict.fromkeys((CPU, *names)))


def _made(pipeline: str, target: str) -> bool:
    try:
        check_request(target, pipeline)
    except Unavailable:
        return False
    return True
