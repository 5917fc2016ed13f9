"""report.html: a run on one page that needs nothing but itself."""

import re
from pathlib import Path

from esper.errors import PreconditionFailed
from esper.nissa import plots
from esper.nissa.files import read_text, replace_text
from esper.nissa.lineage import Kernels
from esper.nissa.page import Page, page_of
from esper.nissa.pedigrees import NO_PEDIGREES, Pedigrees
from esper.nissa.seeds import FOSSILIZED, Stay
from esper.nissa.summary import RunRecord

FILE = "report.html"
_POSITION = re.compile(r'<meta name="esper-position" content="(\d+)">')


def render(record: RunRecord, kernels: Kernels, pedigrees: Pedigrees = NO_PEDIGREES) -> str:
    """The page as HTML: styles and pictures are inside, nothing is fetched, no script runs."""
    import jinja2

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = page_of(record, kernels, pedigrees)
    shown, left_out = _lanes(record)
    pictures = draw(record, page, shown)
    return environment.get_template("report.html.j2").render(page=page, pictures=pictures, left_out=left_out)


def draw(record: RunRecord, page: Page, lanes: dict[str, list[Stay]]) -> dict[str, str]:
    """The pictures there is data for."""
    pictures = {}
    if "losses" not in page.missing:
        pictures["losses"] = plots.losses(record.train, record.validations, [r.restored_step for r in record.rollbacks])
    if lanes:
        pictures["lanes"] = plots.lanes(lanes, record.alphas, record.step)
    if "parameters" not in page.missing:
        pictures["parameters"] = plots.parameters(record.parameters)
    if (summary := record.summary) is not None and plots.drawable(summary.train_flops + summary.nursery_flops):
        pictures["costs"] = plots.costs(summary.train_flops, summary.nursery_flops)
    return pictures


def write_report(
    directory: Path | None, record: RunRecord, kernels: Kernels, pedigrees: Pedigrees = NO_PEDIGREES
) -> Path:
    """Write the report into the run's directory and return its path.

    Raises PreconditionFailed where the directory is not known or cannot be written,
    Exhausted where the disk is full.
    """
    if directory is None:
        raise PreconditionFailed(
            f"the directory of run {record.run_id!r} is not known, because its hello was not heard; attach it again"
        )
    path = directory / FILE
    replace_text(path, render(record, kernels, pedigrees))
    return path


def position_of(directory: Path) -> int:
    """Position of the last event the report in `directory` has; 0 where there is no report."""
    found = _POSITION.search((read_text(directory / FILE) or "")[:2000])
    return int(found.group(1)) if found else 0


def _lanes(record: RunRecord) -> tuple[dict[str, list[Stay]], int]:
    """Seeds to draw, and how many are left out. Those that came furthest, then those that moved most."""
    moved = {seed: stays for seed, stays in record.seeds.stays.items() if stays}
    chosen = sorted(moved, key=lambda seed: (-_furthest(moved[seed]), -len(moved[seed]), seed))
    shown = set(chosen[: plots.MAX_LANES])
    return {seed: stays for seed, stays in moved.items() if seed in shown}, len(moved) - len(shown)


def _furthest(stays: list[Stay]) -> int:
    """The last state of a life that succeeds which was reached; those after it are ends of lives that do not."""
    return max((stay.state for stay in stays if stay.state <= FOSSILIZED), default=0)
