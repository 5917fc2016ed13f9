"""What `esper show` says of what a run kept."""

from pathlib import Path

from esper.runtime.runs import StoredRun, describe

KARN = {
    "title": "karn_1",
    "family": "gate",
    "author": "karn",
    "source": "add gelu; remove add",
    "parents": ["d" * 64, "e" * 64],
}
PARENT = {"title": "low_rank", "family": "mlp", "author": "library", "source": "Hu et al. 2021", "parents": []}
FOSSIL = {"seed": "fc1/0", "step": 5, "artifact_id": "a" * 64}


def said(fossil, blueprints):
    lineage = {"fossils": [FOSSIL | fossil]} | ({} if blueprints is None else {"blueprints": blueprints})
    run = StoredRun(Path("runs/one"), {"run_id": "one", "task": "digits"}, {}, lineage)
    (line,) = [line for line in describe(run).splitlines() if line.startswith("genealogy")]
    return line.removeprefix("genealogy   ")


def test_it_names_the_maker_the_parents_and_the_moves():
    line = said({"blueprint_id": "c" * 64, "title": "karn_1"}, {"c" * 64: KARN, "d" * 64: PARENT})
    assert line == f"karn_1: made by karn, of low_rank and {'e' * 12} (add gelu, then remove add)"


def test_a_template_has_its_paper_and_no_parents():
    line = said({"blueprint_id": "d" * 64, "title": "low_rank"}, {"d" * 64: PARENT})
    assert line == "low_rank: made by library (Hu et al. 2021)"


def test_a_run_recorded_without_a_genealogy_says_so():
    unknown = "what it descends from is not known"
    assert said({"blueprint_id": "c" * 64}, None) == f"{'c' * 12}: {unknown}"
    assert said({}, {}) == f"its blueprint is not known: {unknown}"
