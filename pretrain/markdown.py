"""Tables and sections of Markdown text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """The last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def with_section(text: str, title: str, body: str) -> str:
    """Text with another `body` under `title`, a heading of the second level; where it is new, before ``## Use``."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    titles = [part.partition("\n")[0].rstrip() for part in parts]
    section = f"{title}\n\n{body}\n\n"
    if title in titles:
        parts[titles.index(title)] = section
    else:
        parts.insert(titles.index("## Use") if "## Use" in titles else len(parts), section)
    return "".join(parts).rstrip() + "\n"
