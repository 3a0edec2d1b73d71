import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pretrain.errors import InputError
from pretrain.report import write_report

VOID = {"meta", "br"}
TITLES = {
    "Loss, bits per byte",
    "Learning rate",
    "Gradient norm",
    "Trained tokens per second",
    "Model FLOPs utilisation, %",
    "Peak memory, GiB",
    "Waiting for data, % of time",
}


class Page(HTMLParser):
    """Text, charts and ids of a page whose elements all close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.charts: dict[str, int] = {}
        self.ids: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if "id" in values:
            self.ids.append(str(values["id"]))
        if tag == "svg":
            self.chart = str(values["aria-label"])
            self.charts[self.chart] = 0
        if tag == "path" and "stroke: #" in str(values.get("style")):
            self.charts[self.chart] += 1
        assert not {"src", "http-equiv"} & set(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def train_record(step: int, **values: float | None) -> dict[str, object]:
    return {
        "kind": "train",
        "step": step,
        "trained_tokens": step * 1000,
        "loss": 2.0,
        "bits_per_byte": 3 - step / 100,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 4000.0,
        "mfu": 0.3,
        "data_wait": 0.01,
        "memory_gib": 1.5,
        "skipped_steps": 0,
        "batch_hash": "00",
        "seconds": float(step),
        **values,
    }


def write_metrics(run_dir: Path, records: list[dict[str, object]], tail: str = "") -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


VALIDATION = {"kind": "validation", "step": 50, "trained_tokens": 50_000, "loss": 1.5, "perplexity": 4.5}
VALIDATION |= {"bits_per_byte": 2.164, "seconds": 51.0}

OF_CORPUS = {
    "bits_per_byte": 2.1111,
    "latents": 256,
    "ablation_windows": 128,
    "loss_by_position": [2.0, None, *[1.5] * 14],
    "ablation": [
        {"prefix_tokens": 0, "bits_per_byte": 2.3, "perplexity": 4.9, "gain": 0.0},
        {"prefix_tokens": 1792, "bits_per_byte": 2.1, "perplexity": 4.3, "gain": 0.2},
    ],
    "baselines": {"order_0": 4.5, "order_2": 2.3, "xz": 1.9},
}
EVALUATION = {"split": "validation", "tokens": 123_456, "bits_per_byte": 2.1111, "perplexity": 4.321}
TASKS = {"passkey": {"accuracy": 0.8125}}
EVALUATION |= {"corpora": {"code": OF_CORPUS}, "tasks": TASKS}


def test_draws_every_curve_of_a_run_with_gaps(tmp_path: Path) -> None:
    steps = [10, 20, 70, 80]  # 30 to 60 are missing
    records = [train_record(step) for step in steps] + [
        train_record(90, bits_per_byte=None, grad_norm=None),
        VALIDATION,
    ]
    write_metrics(tmp_path / "run", records, tail='{"kind": "train", "step": 1')

    page = Page(write_report(tmp_path / "run").read_text())

    assert set(page.charts) == TITLES | {"Perplexity"}
    assert page.charts["Loss, bits per byte"] > page.charts["Learning rate"] >= 1
    assert len(page.ids) == len(set(page.ids))
    assert {"training", "validation", "2.1640", "not finite", "50,000"} <= set(page.text)


def test_tells_the_units_of_what_is_measured_of_flow(tmp_path: Path) -> None:
    record = {"kind": "validation", "step": 50, "trained_pixels": 9, "loss": 1.5, "seconds": 5.0}
    write_metrics(tmp_path / "run", [record | {"end_point_error": 1.5, "over_3px": 0.25, "fl_all": 0.25}])
    page = Page(write_report(tmp_path / "run").read_text())
    measured = {"End-point error, pixels", "Off by more than 3 pixels, share", "Fl-all, share of pixels"}
    assert measured <= set(page.charts)
    assert measured | {"Loss"} <= set(page.text)


def test_marks_skipped_steps(tmp_path: Path) -> None:
    skipped = {"kind": "skipped", "step": 15, "problem": "loss not finite", "loss": None, "grad_norm": None}
    skipped |= {"samples": [56, 59], "worst_samples": [{"sample": 58, "loss": None}]}
    records = [train_record(10), skipped, train_record(20, skipped_steps=1)]
    write_metrics(tmp_path / "run", records)
    write_metrics(tmp_path / "other", [records[0], records[2]])

    page, unmarked = (Page(write_report(tmp_path / name).read_text()) for name in ("run", "other"))

    more = {title: page.charts[title] - unmarked.charts[title] for title in TITLES}
    assert {title for title, paths in more.items() if paths} == {"Loss, bits per byte", "Gradient norm"}
    assert page.text.count("skipped") == 2
    assert "20" in page.text


def test_shows_evaluation_sample_and_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_metrics(run, [train_record(10)])
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    (run / "sample.txt").write_text("if a < b & c:\n    </pre><script>alert(1)</script>")
    (run / "config.yaml").write_text("run:\n  dir: runs/<demo>\n")

    html = write_report(run).read_text()

    page = Page(html)
    assert set(page.charts) == TITLES | {"Nats per token"}
    assert {"order-0 entropy", "order-2 entropy", "xz", "1,792", "+0.2000", "2.1111", "4.3210"} <= set(page.text)
    assert {"passkey, accuracy", "0.8125"} <= set(page.text)
    assert "if a < b & c:\n    </pre><script>alert(1)</script>" in "".join(page.text)
    assert "<script" not in html


def test_tasks_may_be_all_that_was_evaluated(tmp_path: Path) -> None:
    write_metrics(tmp_path, [train_record(10)])
    (tmp_path / "evaluation.json").write_text(json.dumps({"corpora": {}, "tasks": TASKS}))
    assert {"passkey, accuracy", "0.8125"} <= set(Page(write_report(tmp_path).read_text()).text)


@pytest.mark.parametrize("content, message", [(None, "no metrics.jsonl"), ("", "empty"), ('{"cut', "empty")])
def test_refuses_a_folder_without_metrics(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
