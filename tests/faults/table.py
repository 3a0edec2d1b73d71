"""The table of docs/reliability.md: what was tried, how often, what came out, and in how many seconds."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

Row = tuple[str, str, float]
"""What was tried, what came out, seconds."""

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def write_table(page: Path, rows: list[Row]) -> None:
    """Put the table of `rows` between the page's two marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(before + BEGIN + table(rows) + END + after)


def table(rows: list[Row]) -> str:
    """Markdown; rows of the same fault and outcome become one."""
    times: dict[tuple[str, str], list[float]] = {}
    for fault, outcome, seconds in rows:
        times.setdefault((fault, outcome), []).append(seconds)
    lines = [f"| {fault} | {len(s)} | {outcome} | {sum(s) / len(s):.1f} |" for (fault, outcome), s in times.items()]
    total = sum(seconds for *_, seconds in rows)
    return "\n".join(
        [
            f"{len(rows)} faults in {total / 60:.0f} minutes on {os.cpu_count()} CPU cores, "
            f"torch {version('torch')}, DeepSpeed {version('deepspeed')}.",
            "",
            "| fault | times | what came out | seconds each |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )
