"""The cost model: more to do never takes less, and never more at once than an architecture's limits allow."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tezzeret.cost_model import DEVICES, LAUNCH_NS, MEMORY_NS, Work, launch_ns, resident
from esper.tezzeret.kernels import MACHINE_CODE

DEVICE = st.sampled_from(sorted(DEVICES))
WARPS = st.sampled_from([1, 2, 4, 8, 16])
WORK = st.builds(Work, st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
PROGRAMS, ROWS, AT_ONCE = st.integers(1, 1 << 20), st.sampled_from([1, 2, 16, 128]), st.integers(1, 32)
MORE = st.integers(0, 1 << 20)


def test_every_target_with_machine_code_has_its_limits():
    assert DEVICES.keys() == MACHINE_CODE.keys()


@given(DEVICE, WARPS, st.integers(0, 512), st.integers(0, 1 << 18))
def test_what_is_at_once_on_a_unit_is_within_its_limits(name, warps, registers, shared_bytes):
    device = DEVICES[name]
    fit = resident(device, warps, registers, shared_bytes)
    assert 0 <= fit <= device.programs
    assert fit * warps <= device.warps
    assert fit * warps * registers <= 4 * 512
    assert fit * (shared_bytes + device.shared_reserved_bytes) <= device.shared_bytes


@given(DEVICE, WARPS, st.integers(0, 512), st.integers(0, 1 << 18), st.integers(0, 64), st.integers(0, 1 << 12))
def test_more_registers_or_shared_memory_never_fit_more(name, warps, registers, shared_bytes, more, more_bytes):
    device = DEVICES[name]
    fit = resident(device, warps, registers, shared_bytes)
    assert resident(device, warps, registers + more, shared_bytes + more_bytes) <= fit


@given(DEVICE, WORK, MORE, MORE, MORE, PROGRAMS, ROWS, AT_ONCE)
def test_more_bytes_and_more_arithmetic_never_take_less(name, work, more, sums, flops, programs, rows, at_once):
    larger = Work(work.bytes_per_position + more, work.bytes_per_program + sums, work.flops_per_position + flops)
    args = programs, rows, at_once
    assert launch_ns(DEVICES[name], larger, *args) >= launch_ns(DEVICES[name], work, *args)


@given(DEVICE, WORK, PROGRAMS, MORE, ROWS, AT_ONCE)
def test_more_programs_never_take_less(name, work, programs, more, rows, at_once):
    fewer, larger = (launch_ns(DEVICES[name], work, number, rows, at_once) for number in (programs, programs + more))
    assert larger >= fewer * (1 - 1e-12)


@given(DEVICE, WORK, PROGRAMS, ROWS, AT_ONCE)
def test_a_launch_is_never_faster_than_the_devices_bandwidth_or_a_trip_to_memory(name, work, programs, rows, at_once):
    device = DEVICES[name]
    took = launch_ns(device, work, programs, rows, at_once)
    moved = programs * (rows * work.bytes_per_position + work.bytes_per_program)
    assert took >= LAUNCH_NS + max(MEMORY_NS, moved / device.bytes_per_ns) * (1 - 1e-12)


def test_figures_by_hand():
    """sm_90: 40 registers are 12 warps a quarter, 48 of a unit; 16 KiB and the reserved one are 13 of 228."""
    device = DEVICES["sm_90"]
    assert resident(device, 4, 40, 0) == 12
    assert resident(device, 1, 33, 0) == 32
    assert resident(device, 4, 32, 16 << 10) == 13
    assert resident(DEVICES["gfx942"], 4, 89, 0) == 5
    work, programs = Work(1024, 0, 0), 2 * 132 * 12
    moved_ns = 132 * 12 * 16 * 1024 / 3350
    assert launch_ns(device, work, programs, 16, 12) == pytest.approx(900 + 2 * (moved_ns + 404 / 12))


def test_a_program_that_does_not_fit_is_refused():
    assert resident(DEVICES["gfx942"], 1, 64, 65 << 10) == 0
    assert resident(replace(DEVICES["sm_80"], warps=8), 16, 32, 0) == 0
    with pytest.raises(ValueError, match="no program fits"):
        launch_ns(DEVICES["sm_80"], Work(1, 0, 1), 1, 1, 0)
