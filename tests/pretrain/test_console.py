import io
import re
import time

import pytest
from rich.console import Console

from pretrain import console as console_module
from pretrain.console import MEGABYTES, Measure, show_progress


def shown(monkeypatch, steps, **arguments) -> list[str]:
    """Lines for work of 100 MB; a step is seconds gone by, megabytes done in them, and perhaps a new total."""
    now = 0.0
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now)
    file = io.StringIO()
    with show_progress(Console(file=file), "work", 100_000_000, MEGABYTES, **arguments) as advance:
        for seconds, megabytes, *total in steps:
            now += seconds
            advance(megabytes * 1_000_000, total=total[0] * 1_000_000 if total else None)
    return file.getvalue().splitlines()


def test_rate_and_time_left(monkeypatch):
    assert shown(monkeypatch, [(10, 25), (10, 25), (20, 50)]) == [
        "work: 25.0 of 100.0 MB, 2.5 MB/s, ETA 0:00:30",
        "work: 50.0 of 100.0 MB, 2.5 MB/s, ETA 0:00:20",
        "work: 100.0 of 100.0 MB, 2.5 MB/s, 40.0 s",
        "work: 100.0 of 100.0 MB, 2.5 MB/s, 40.0 s",
    ]


def test_what_was_done_before_counts_but_not_towards_the_rate(monkeypatch):
    lines = shown(monkeypatch, [(10, 10)], done=80_000_000)
    assert lines[0] == "work: 90.0 of 100.0 MB, 1.0 MB/s, ETA 0:00:10"
    assert shown(monkeypatch, [], done=100_000_000) == ["work: 100.0 of 100.0 MB"]


def test_what_is_counted_has_no_fractions(monkeypatch):
    monkeypatch.setattr(console_module.time, "monotonic", lambda: 0.0)
    file = io.StringIO()
    with show_progress(Console(file=file), "work", 2000, Measure("texts", 1)) as advance:
        advance(1000)
    assert file.getvalue().startswith("work: 1,000 of 2,000 texts, ")


def test_the_total_may_turn_out_otherwise(monkeypatch):
    lines = shown(monkeypatch, [(10, 90), (10, 90), (10, 20, 300)])
    assert lines[:3] == [
        "work: 90.0 of 100.0 MB, 9.0 MB/s, ETA 0:00:01",
        "work: 180.0 MB, 9.0 MB/s, 20.0 s",
        "work: 200.0 of 300.0 MB, 6.7 MB/s, ETA 0:00:15",
    ]


def test_a_bar_on_a_terminal():
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=100), "work", 10**8, MEGABYTES) as advance:
        advance(50_000_000, total=200_000_000)
    assert re.search(r"50\.0 of 200\.0 MB", file.getvalue())


def test_a_bar_is_drawn_now_and_then_however_often_the_work_advances():
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=100), "work", 10**8, MEGABYTES) as advance:
        began = time.monotonic()
        for _ in range(100_000):
            advance(1)
        assert time.monotonic() - began < 0.3
    assert "work: 0.1 of 100.0 MB" in file.getvalue()


@pytest.mark.parametrize("force_terminal", [False, True])
def test_names_are_not_markup(force_terminal):
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=force_terminal, width=100), "[/b] [red]x", 1, MEGABYTES):
        pass
    assert "[/b] [red]x: 0.0 of 0.0 MB" in file.getvalue()
