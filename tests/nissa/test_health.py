"""The health of the system from what its services answer."""

from hypothesis import given
from hypothesis import strategies as st

from esper.api.nissa.v1.observability_pb2 import ServiceHealth
from esper.nissa.health import fold


def rows(answer):
    return {row.component: (row.serving, row.detail) for row in answer.services}


def test_all_serving_is_healthy_and_nissa_answers_for_itself():
    answer = fold([ServiceHealth(component="urza", serving=True, detail="SERVING")], {})
    assert answer.healthy
    assert rows(answer) == {"nissa": (True, "SERVING"), "urza": (True, "SERVING")}


def test_one_that_does_not_serve_makes_the_system_unhealthy():
    answer = fold(
        [ServiceHealth(component="urza", serving=True), ServiceHealth(component="karn", detail="no answer in 1 s")], {}
    )
    assert not answer.healthy
    assert rows(answer)["karn"] == (False, "no answer in 1 s")


def test_a_component_with_two_services_serves_if_both_do():
    two = [ServiceHealth(component="urza", serving=True, detail="a"), ServiceHealth(component="urza", detail="b")]
    assert rows(fold(two, {}))["urza"] == (False, "a; b")


def test_runs_that_could_not_be_written_are_nissas_fault():
    answer = fold([ServiceHealth(component="nissa", serving=True, detail="SERVING")], {"run-1": "disk full"})
    assert not answer.healthy
    assert rows(answer)["nissa"] == (False, "SERVING; run run-1: disk full")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_healthy_means_every_row_serves_and_rows_are_by_name(services):
    answer = fold([ServiceHealth(component=c, serving=s) for c, s in services], {})
    assert answer.healthy == all(s for _, s in services)
    names = [row.component for row in answer.services]
    assert names == sorted(set(names))
