"""Rows for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.row import Row

VERDICT = {True: "yes", False: "NO", None: ""}


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """One line a row, and below what they have in common."""
    console = console or Console()
    if console.width < 100 and not console.is_terminal:
        console.width = 160
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "metric", "value", "unit", "A/A noise", "target", "met", "against"):
        table.add_column(heading, justify="right" if heading in ("value", "target") else "left")
    for row in rows:
        noise = "" if row.aa_low is None or row.aa_high is None else f"{row.aa_low:.4f} to {row.aa_high:.4f}"
        target = "" if row.target is None else f"{row.target:g}"
        cells = (f"{row.value:.4g}", row.unit, noise, target, VERDICT[row.met], row.baseline)
        table.add_row(row.case, row.metric, *cells)
    console.print(table)
    for bench in sorted({row.bench for row in rows}):
        first = next(row for row in rows if row.bench == bench)
        made = ", ".join(f"{name} {version}" for name, version in first.versions.items())
        console.print(f"{bench}: {first.device}; {made}; commit {first.commit or 'unknown'}", highlight=False)
