"""What kernels for a device are compiled for, and what a forge on this machine makes if nobody says."""

import torch

from esper.ops.cubin import choose
from esper.tezzeret.available import CPU
from esper.tezzeret.kernels import triton_version

# Target -> architecture of the machine code that Triton makes for it, as its metadata says: a letter binds it to one.
NVIDIA = {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100a"}
AMD = ("gfx942",)


def target_of_device(device: torch.device) -> str:
    """The target whose kernels run on a device; "cpu" where there is none, since TorchScript runs on any."""
    if device.type != "cuda":
        return CPU
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        return name if name in AMD else CPU
    return choose(NVIDIA, torch.cuda.get_device_capability(device))[0] or CPU


def default_targets() -> tuple[str, ...]:
    """cpu, and those of this machine's devices where there is Triton to make their kernels."""
    if not triton_version() or not torch.cuda.is_available():
        return (CPU,)
    devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return tuple(dict.fromkeys((CPU, *map(target_of_device, devices))))
