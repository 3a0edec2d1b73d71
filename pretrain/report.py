"""Turn a run directory into report.html: one file with its curves, its final numbers and its configuration."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from html import escape
from typing import Any

from pretrain.command_line import ArgumentParser
from pretrain.curves import Curve, draw_curves
from pretrain.errors import DONE, InputError, run_command
from pretrain.files import replace_text
from pretrain.metrics import measures_of, read_records, show_rate, unit_of
from pretrain.tasks.task import Record

EXAMPLES = "  python pretrain/report.py runs/demo"

GRADIENT_NORM = "Gradient norm"
TITLES = {
    "bits_per_byte": "Loss, bits per byte",
    "loss": "Loss",
    "end_point_error": "End-point error, pixels",
    "end_point_error_occluded": "Part of it in occluded pixels",
    "zero_flow_error": "End-point error of no motion, pixels",
    "fl_all": "Fl-all, share of pixels",
    **{f"over_{limit}px": f"Off by more than {limit} pixels, share" for limit in (1, 3, 5)},
}
BASELINES = {"order_0": "order-0 entropy", "order_2": "order-2 entropy", "xz": "xz"}

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; font-weight: normal; }
td + td, th + th { text-align: right; } th { opacity: .7; } tr { border-bottom: 1px solid #8884; }
pre { padding: .8rem; overflow-x: auto; background: #8881; border-radius: .4rem; font-size: .85rem; }
"""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    print(write_report(parser.parse_args(argv).run_dir))
    return DONE


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from what the run directory holds: metrics.jsonl, and, where they exist, config.yaml,
    evaluation.json and sample.txt. Returns its path.

    Raises `InputError` where there are no metrics.
    """
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{run_dir}: not a run directory, it has no metrics.jsonl")
    records = read_records(path)
    if all(record["kind"] == "skipped" for record in records):
        raise InputError(f"{path}: empty; log at least one step first")
    evaluation = _read_json(run_dir / "evaluation.json")
    sections = [
        ("Curves", f'<div class="curves">{"".join(_figures(records, evaluation))}</div>'),
        ("Final numbers", _table(_final_numbers(records, evaluation))),
    ]
    for name, of_corpus in _evaluated_corpora(evaluation).items():
        sections += list(_evaluation_sections(name, of_corpus))
    for title, name in {"Generated sample": "sample.txt", "Configuration": "config.yaml"}.items():
        if (run_dir / name).is_file():
            sections.append((title, f"<pre>{escape((run_dir / name).read_text(errors='replace'))}</pre>"))
    report = run_dir / "report.html"
    replace_text(report, _page(run_dir.resolve().name, sections))
    return report


def _figures(records: list[Record], evaluation: dict[str, Any] | None) -> Iterable[str]:
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    skipped = [record["step"] for record in records if record["kind"] == "skipped"]
    marks = {"skipped": skipped} if skipped else {}

    def curve(key: str, label: str = "", of: list[Record] = train, scale: float = 1) -> Curve:
        points = [(record["step"], record.get(key)) for record in of]
        return Curve(label, [step for step, _ in points], [None if y is None else y * scale for _, y in points])

    corpora = list(_evaluated_corpora(evaluation).values())
    levels = _baselines(corpora[0]) if len(corpora) == 1 else {}
    loss, unit = _loss_key(records), unit_of(records[0])
    both = [curve(loss, "training"), curve(loss, "validation", validation)]
    measured = [name for name in measures_of(validation[-1]) if name != loss] if validation else []
    figures: dict[str, tuple[list[Curve], dict[str, float]]] = {
        TITLES[loss]: (both, levels),
        **{_title(name): ([curve(name, "validation", validation)], {}) for name in measured},
        "Learning rate": ([curve("lr")], {}),
        GRADIENT_NORM: ([curve("grad_norm")], {}),
        f"Trained {unit} per second": ([curve(f"{unit}_per_second")], {}),
        "Model FLOPs utilisation, %": ([curve("mfu", scale=100)], {}),
        "Peak memory, GiB": ([curve("memory_gib")], {}),
        "Waiting for data, % of time": ([curve("data_wait", scale=100)], {}),
    }
    for number, (title, (curves, horizontals)) in enumerate(figures.items()):
        marked = marks if title in (TITLES[loss], GRADIENT_NORM) else {}
        drawing = draw_curves(title, curves, horizontals, marked, identity=f"curve{number}")
        yield f"<figure>{drawing}</figure>"


def _final_numbers(records: list[Record], evaluation: dict[str, Any] | None) -> Iterable[Sequence[str]]:
    records = [record for record in records if record["kind"] != "skipped"]
    last = {record["kind"]: record for record in records}
    seconds = max(record["seconds"] for record in records)
    yield "steps", f"{records[-1]['step']:,}"
    unit, loss = unit_of(records[-1]), _loss_key(records)
    trained, name = records[-1][f"trained_{unit}"], TITLES[loss].partition(", ")[2]
    suffix = f", {name}" if name else ""
    yield f"trained {unit}", f"{trained:,}"
    yield "wall time", str(timedelta(seconds=round(seconds)))
    yield f"trained {unit} per second, whole run", show_rate(trained / seconds)
    if "train" in last:
        yield f"training loss{suffix}", _number(last["train"][loss])
        yield "skipped steps", f"{last['train']['skipped_steps']:,}"
    if "validation" in last:
        yield f"validation loss in training{suffix}", _number(last["validation"][loss])
        for measure in measures_of(last["validation"]):
            if measure != loss:
                yield _title(measure), _number(last["validation"][measure])
    if evaluation and evaluation["corpora"]:
        yield (
            f"{evaluation['split']} loss, {evaluation['tokens']:,} tokens, bits per byte",
            _number(evaluation["bits_per_byte"]),
        )
        yield "perplexity per token", _number(evaluation["perplexity"])
    for corpus, of_corpus in _evaluated_corpora(evaluation).items():
        yield f"{corpus}, bits per byte", _number(of_corpus["bits_per_byte"])
        for name, value in _baselines(of_corpus).items():
            yield f"{corpus}, {name}, bits per byte", _number(value)
    for task, metrics in (evaluation or {}).get("tasks", {}).items():
        for name, value in metrics.items():
            yield f"{task}, {name}", _number(value)


def _loss_key(records: list[Record]) -> str:
    """Bits per byte compare across tokenizers; the loss itself does not."""
    return "bits_per_byte" if any("bits_per_byte" in record for record in records) else "loss"


def _title(measure: str) -> str:
    return TITLES.get(measure, measure.replace("_", " ").capitalize())


def _evaluated_corpora(evaluation: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return evaluation["corpora"] if evaluation else {}


def _baselines(of_corpus: dict[str, Any]) -> dict[str, float]:
    return {BASELINES[name]: value for name, value in (of_corpus["baselines"] or {}).items()}


def _evaluation_sections(corpus: str, evaluation: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if evaluation["ablation"]:
        rows = [
            (
                f"{row['prefix_tokens']:,}",
                _number(row["bits_per_byte"]),
                _number(row["perplexity"]),
                f"{row['gain']:+.4f}",
            )
            for row in evaluation["ablation"]
        ]
        head = ("tokens of prefix left", "bits per byte", "perplexity", "gain over none, bits per byte")
        note = f"<p>Same weights and latents, {evaluation['ablation_windows']:,} windows spread over the split.</p>"
        yield f"What the prefix contributes: {corpus}", note + _table(rows, head)
    positions = evaluation["loss_by_position"]
    span = evaluation["latents"] / len(positions)
    points = [(span * (i + 0.5), y) for i, y in enumerate(positions) if y is not None]
    curve = Curve("", [x for x, _ in points], [y for _, y in points])
    drawing = draw_curves(
        "Nats per token", [curve], {}, {}, identity=f"positions-{corpus}", x_label="latent, first to last"
    )
    yield f"Loss by position among the latents: {corpus}", f'<div class="curves"><figure>{drawing}</figure></div>'


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = [(head, "th")] if head else []
    lines += [(row, "td") for row in rows]
    cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for row, tag in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _page(name: str, sections: Iterable[tuple[str, str]]) -> str:
    body = "\n".join(f"<section><h2>{escape(title)}</h2>\n{content}</section>" for title, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(name)}</h1>\n{body}\n</body></html>\n"
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.4f}"


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    run_command(main)
