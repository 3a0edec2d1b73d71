import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.crew import start
from tests.faults.table import Row, write_table
from tests.pretrain.conftest import corpus, prepare, write_run  # noqa: F401 (fixtures)

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help=f"write what was tried and survived into {TABLE.name}")


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """survived(fault, outcome): a row of the table, with the seconds since the last one or the test's start.

    The same fault with the same outcome is one row, with the times it was tried.
    """
    clock = time.monotonic()

    def survived(fault: str, outcome: str) -> None:
        nonlocal clock
        now = time.monotonic()
        record_property("survived", (fault, outcome, now - clock))
        clock = now

    return survived


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("write_table", default=False):
        return
    if "failed" in terminalreporter.stats or "error" in terminalreporter.stats:
        terminalreporter.write_line(f"{TABLE.name} stays as it is: not everything was survived")
        return
    passed = sorted(terminalreporter.stats.get("passed", []), key=lambda report: report.nodeid)
    rows: list[Row] = [value for report in passed for name, value in report.user_properties if name == "survived"]
    write_table(TABLE, rows)
    terminalreporter.write_line(f"{TABLE.name}: {len(rows)} trials")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, write_run) -> Callable[..., Path]:  # noqa: F811
    """undisturbed(ranks, **fields) -> the folder of a run with these fields that nothing happened to."""
    runs: dict[str, Path] = {}

    def undisturbed(ranks: int, **fields: object) -> Path:
        key = f"{ranks} {sorted(fields.items())}"
        if key not in runs:
            config = write_run(tmp_path_factory.mktemp("undisturbed") / "run", **fields)
            start(config, ranks).expect(*[0] * ranks)
            runs[key] = config.with_suffix("")
        return runs[key]

    return undisturbed
