"""Ranks among peers, and only among peers."""

from esper.urabrask.population import ALONE, FEWEST, Member, Population, group_name


def member(number: int, forward_us: float, peak_bytes: int = 100, group: str = "g") -> Member:
    return Member(f"{number:064x}", group, forward_us, peak_bytes)


def filled(count: int = 10) -> Population:
    population = Population()
    for number in range(count):
        population.put(member(number, 10.0 * number, 100 - number))
    return population


def test_the_fastest_is_at_0_and_the_slowest_at_1():
    population = filled()
    assert population.standing(member(0, 0.0, 100)).speed_rank == 0.0
    assert population.standing(member(9, 90.0, 91)).speed_rank == 1.0
    assert population.standing(member(9, 90.0, 91)).memory_rank == 0.0


def test_ties_count_half_and_a_kernel_is_no_peer_of_itself():
    population = Population()
    for number in range(3):
        population.put(member(number, 5.0))
    seen = population.standing(member(0, 5.0))
    assert (seen.members, seen.speed_rank) == (3, 0.5)


def test_other_groups_do_not_count():
    assert filled().standing(member(99, 1.0, group="another")) == ALONE


def test_ranks_are_known_from_the_fewest_members_on():
    assert not filled(FEWEST - 1).standing(member(0, 1.0)).known
    assert filled(FEWEST - 1).standing(member(99, 1.0)).known


def test_a_kernel_measured_again_replaces_itself_and_one_that_is_dropped_is_gone():
    population = filled()
    population.put(member(3, 1.0, group="another"))
    assert len(population.members("g")) == 9
    population.drop(member(3, 1.0).artifact_id)
    assert population.members("another") == ()


def test_a_group_is_hardware_threads_type_causality_and_input():
    base = ("cpu", "1", "float32", False, (16, 32, 8))
    others = [("gpu", *base[1:]), ("cpu", "2", *base[2:]), (*base[:3], True, base[4]), (*base[:4], (16, 32, 16))]
    assert len({group_name(*key) for key in (base, *others)}) == 5
