"""How long one launch of a region's kernel takes on a device, from what its compiler said. Pure; for ranking only.

A region's kernel has no loop over its values: a program loads its tile, computes and stores. Time is that of rounds of
programs, as many at once as fit; a round takes the longer of its bytes and its arithmetic, and the part of a trip to
memory that no other program of the unit hides: one of those at once. Parameters, and what serves all positions of a
sample, come from cache and are not counted.

Where the constants are from:

- warps, programs, registers and shared memory of a unit: CUDA C++ Programming Guide, "Technical Specifications per
  Compute Capability" (64 warps, 32 programs, 65,536 registers; 164 KiB, 228 KiB, 228 KiB); registers in groups of 8 a
  thread, shared memory in 128 bytes and 1 KiB reserved for each program: CUDA occupancy calculator. gfx942: LLVM's
  AMDGPU backend (8 waves for each of 4 SIMDs, 512 vector registers in groups of 8, 64 KiB of LDS in 512 bytes).
- units, bandwidth and float32 rate: data sheets of A100 80 GB SXM (108, 2,039 GB/s, 19.5 TFLOP/s), H100 SXM (132,
  3.35 TB/s, 67 TFLOP/s), an eighth of HGX B200 (7.7 TB/s, 75 TFLOP/s; 148 units as its driver says), and MI300X (304,
  5.3 TB/s, 163.4 TFLOP/s).
- MEMORY_NS: S. Jones, "How GPU Computing Works", NVIDIA GTC 2021, of the A100; it is taken for all.
- UNIT_SHARE, how many times its equal share of the bandwidth a unit (an SM, a CU) can draw: A100 whitepaper, L2 to SMs
  5,120 bytes a clock at 1.41 GHz over 2,039 GB/s; of the A100, and taken for all.
- LAUNCH_NS: A. Gray, "Getting Started with CUDA Graphs", NVIDIA 2019: 3.8 us a launch of a kernel that takes 2.9 us.
"""

from dataclasses import dataclass

MEMORY_NS = 404.0
LAUNCH_NS = 900.0
UNIT_SHARE = 3.5
_QUARTERS = 4  # of a unit, each with its share of the warps and registers
_LANE_REGISTERS = 512  # of a quarter, for each thread of a warp
_REGISTER_GROUP = 8


@dataclass(frozen=True, slots=True)
class Device:
    """Published limits of one architecture; `warps`, `programs` and `shared_bytes` are of a unit."""

    units: int
    warps: int
    programs: int
    shared_bytes: int
    shared_group_bytes: int
    shared_reserved_bytes: int
    bytes_per_ns: float
    flops_per_ns: float


DEVICES = {
    "sm_80": Device(108, 64, 32, 164 << 10, 128, 1024, 2039.0, 19.5e3),
    "sm_90": Device(132, 64, 32, 228 << 10, 128, 1024, 3350.0, 67e3),
    "sm_100": Device(148, 64, 32, 228 << 10, 128, 1024, 7700.0, 75e3),
    "gfx942": Device(304, 32, 32, 64 << 10, 512, 0, 5300.0, 163.4e3),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel moves and computes. `bytes_per_program`: partial sums, written once and read once by torch.sum."""

    bytes_per_position: int
    bytes_per_program: int
    flops_per_position: int


def resident(device: Device, warps: int, registers: int, shared_bytes: int) -> int:
    """Programs of `warps` warps that a unit runs at once; 0 where not one fits."""
    by_registers = _LANE_REGISTERS // _up(max(1, registers), _REGISTER_GROUP) * _QUARTERS
    by_warps = min(device.warps, by_registers) // warps
    asked = _up(shared_bytes + device.shared_reserved_bytes, device.shared_group_bytes)
    by_shared = device.shared_bytes // asked if asked else device.programs
    return min(device.programs, by_warps, by_shared)


def launch_ns(device: Device, work: Work, programs: int, tile_rows: int, at_once: int) -> float:
    """Nanoseconds of one launch of `programs` programs of `tile_rows` positions, `at_once` of them on a unit.

    Raises ValueError where none fits a unit.
    """
    if at_once < 1:
        raise ValueError("no program fits a unit of the device")
    rounds, left = divmod(programs, device.units * at_once)
    full = _round_ns(device, work, device.units * at_once, tile_rows, at_once) if rounds else 0.0
    return LAUNCH_NS + rounds * full + (_round_ns(device, work, left, tile_rows, at_once) if left else 0.0)


def _round_ns(device: Device, work: Work, programs: int, tile_rows: int, at_once: int) -> float:
    busy = programs / device.units
    moved = programs * (tile_rows * work.bytes_per_position + work.bytes_per_program)
    computed = programs * tile_rows * work.flops_per_position
    moving_ns = moved / (device.bytes_per_ns * min(1.0, busy * UNIT_SHARE))
    computing_ns = computed / (device.flops_per_ns * min(1.0, busy))
    return max(MEMORY_NS, max(moving_ns, computing_ns) + MEMORY_NS / at_once)


def _up(number: int, group: int) -> int:
    return -(-number // group) * group
