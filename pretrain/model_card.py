"""The README.md of an exported model: what it is, what it was trained on, how good it is and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pretrain.curves import Curve, save_picture
from pretrain.evaluation.passkey import PASSKEY, cell, cells_of
from pretrain.evaluation.results import EVALUATION, SHOWN, TEXT_METRICS, Results
from pretrain.evaluation.tables import shown_metrics
from pretrain.files import replace_text
from pretrain.markdown import markdown_table, with_section
from pretrain.metrics import read_records
from pretrain.release import VALIDATION, Release
from pretrain.tasks import open_task

CARD = "README.md"
PICTURE = "validation.png"
TEXT_TASK = "text-generation"
"""What models do whose folder does not tell: texts are all that these are evaluated on."""
HARNESS_METRICS = {"acc": "accuracy", "acc_norm": "accuracy, normalized by length"}

LOSSES = {"bits_per_byte": "Validation loss, bits per byte", "loss": "Validation loss"}
"""What the picture shows: the first of these that validation measures."""

USAGE_OF_CODE = """

The model's source is among its files, so that it also loads where `perceiver_ar` is not installed:

```python
{code}
```"""


def write_card(folder: Path, name: str, release: Release, *, loaded_as: str, with_code: bool = False) -> None:
    """Write the card of the model called `name`, which its readers load as `loaded_as`, a path or a name on the Hub.

    Beside it, the picture of its validation curve where there is a curve, and what the card tells of evaluation as
    ``evaluation.json``, where results of the folder will gather.

    Raises OSError.
    """
    model = release.architecture
    has_curve = _draw_validation(release, folder / PICTURE)
    results = {"model": name, "checkpoint": None, **measured(release)}
    (folder / EVALUATION).write_text(json.dumps(results, indent=1) + "\n")
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=release.pipeline_tag,
        tags=list(release.tags),
        eval_results=_eval_results(results, release.kind, release.origin()) or None,
    )
    code = USAGE_OF_CODE.format(code=release.usage_of_code(loaded_as)) if with_code else ""
    sections = {
        f"# {name}": release.introduction(),
        "## Architecture": markdown_table(("field", "value"), _architecture(model)),
        "## Training": _training(release) + (f"\n\n![Validation loss]({PICTURE})" if has_curve else ""),
        "## Data": release.data(),
        "## Evaluation": _evaluation(results),
        "## Use": release.usage(loaded_as) + code,
    }
    text = "\n\n".join(f"{title}\n\n{body}" for title, body in sections.items() if body)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / CARD)


def update_evaluation(folder: Path, results: Results) -> None:
    """Have the card in `folder` tell of `results`, and no others: in its section Evaluation and its model-index.

    Raises OSError.
    """
    path = folder / CARD
    card = ModelCard.load(path) if path.is_file() else ModelCard(f"---\npipeline_tag: {TEXT_TASK}\n---\n")
    data: Any = card.data
    data.model_name = data.model_name or folder.resolve().name
    data.eval_results = _eval_results(results, TEXT_TASK)
    card.text = with_section(card.text, "## Evaluation", _evaluation(results))
    replace_text(path, str(card))


def measured(release: Release) -> Results:
    """What `evaluation.json` tells of this checkpoint; else what the run measured last before it.

    All of a mixture is not left out of it; where the texts lay is.
    """
    trained = release.trained
    path, state = trained.run_dir / EVALUATION, trained.state
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    found = found if found.get("step") == state["step"] else {}
    validated = release.validated()
    texts, mixed = validated["corpora"], {}
    if found.get("split") == "validation":
        texts = found["corpora"]
        mixed = {key: value for key, value in found.items() if key in ("split", "loss", *SHOWN) and len(texts) > 1}
    return {
        "step": state["step"],
        f"trained_{open_task(trained.config).unit}": state["trained_targets"],
        "corpora": {name: {**text, "split": "validation", "location": None} for name, text in texts.items()},
        **mixed,
        "tasks": validated["tasks"] | found.get("tasks", {}),
    }


def _eval_results(results: Results, kind: str, origin: str = VALIDATION) -> list[EvalResult]:
    """Entries of the model-index; `kind` is what the model does, `origin` where its validation data came from."""
    texts = [
        EvalResult(
            task_type=kind,
            dataset_type=name.replace(" ", "-"),
            dataset_name=name,
            dataset_split=of_text.get("split"),
            metric_type=metric,
            metric_name=label,
            metric_value=round(of_text[metric], 5),
        )
        for name, of_text in results["corpora"].items()
        for metric, label in TEXT_METRICS.items()
        if of_text.get(metric) is not None
    ]
    tasks = [
        EvalResult(
            task_type=kind,
            dataset_type=data.replace("`", "").replace(" ", "-"),
            dataset_name=data.replace("`", ""),
            metric_type="accuracy" if label.startswith("accuracy") else metric.partition(",")[0],
            metric_name=label,
            metric_value=value,
        )
        for task, metrics in results["tasks"].items()
        for metric, value in metrics.items()
        for label, data in [(_metric_label(metric), _data_name(task, origin))]
        # Neither parts of what another metric sums up, nor how sure it is.
        if not any(metric.startswith(f"{other}, ") for other in metrics) and "_stderr" not in metric
    ]
    return texts + tasks


def _data_name(task: str, origin: str) -> str:
    name, comma, changes = task.partition(",")
    return f"{origin}{comma}{changes}" if name == VALIDATION else task


def _metric_label(metric: str) -> str:
    """A task's metric as people call it: ``acc_norm,strict`` is "accuracy, normalized by length, strict"."""
    name, *rest = (part.strip() for part in metric.split(","))
    label = ", ".join([HARNESS_METRICS.get(name, name.replace("_", " ")), *rest])
    return re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", label)


def _draw_validation(release: Release, path: Path) -> bool:
    """False where nothing is known of how the validation loss went."""
    try:
        records = read_records(release.trained.run_dir / "metrics.jsonl")
    except FileNotFoundError:  # of a checkpoint that was moved out of its run
        return False
    step = release.trained.state["step"]
    validations = [record for record in records if record["kind"] == "validation" and record["step"] <= step]
    if len(validations) < 2:
        return False
    key, title = next((key, title) for key, title in LOSSES.items() if key in validations[0])
    save_picture(path, title, [Curve("", [r["step"] for r in validations], [r[key] for r in validations])])
    return True


def _architecture(model: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Fields that say something and their values; those of parts with the part's name before theirs."""
    for field in fields(model):
        value = getattr(model, field.name)
        if is_dataclass(value):
            yield from _architecture(value, f"{prefix}{field.name}.")
        elif value is not None:
            yield f"`{prefix}{field.name}`", str(list(value) if isinstance(value, tuple) else value)


def _training(release: Release) -> str:
    trained, task = release.trained, open_task(release.trained.config)
    train, steps = trained.config.train, trained.state["step"]
    # Of a folder, where it lay is nobody's business.
    origin = "/".join((task.init_from or "").split("/")[-2:])
    return (f"Started with the weights of `{origin}`. " if origin else "") + (
        f"{steps:,} steps of {train.global_batch:,} {release.rows}, {trained.state['trained_targets']:,} trained "
        f"{task.unit}, {task.step_flops() * steps:.3g} FLOPs, {train.precision}; {trained.config.optimizer.kind}, peak "
        f"learning rate {trained.config.optimizer.lr:g}, {trained.config.schedule.kind} schedule."
    )


def _evaluation(results: Results) -> str:
    texts: dict[str, dict[str, Any]] = results["corpora"]
    parts = []
    if texts:
        mixed = {"mixed as in training": results} if len(texts) > 1 and "bits_per_byte" in results else {}
        parts += ["Text:", _text_table(texts | mixed)]
    for name, of_text in texts.items():
        if ablation := of_text.get("ablation"):
            rows = [(f"{r['prefix_tokens']:,}", f"{r['bits_per_byte']:.4f}", f"{r['gain']:+.4f}") for r in ablation]
            parts.append(f"With the prefix cut, on {name}:")
            parts.append(markdown_table(("prefix left, tokens", "bits per byte", "gain"), rows, numbers=3))
    return "\n\n".join([*parts, *_tasks(results["tasks"])])


def _tasks(tasks: dict[str, dict[str, float]]) -> Iterator[str]:
    """Tables of all metrics, those of passkeys by length and depth."""
    passkeys = cells_of(tasks.get(PASSKEY, {}))
    cells = {cell(length, depth) for length, of_length in passkeys.items() for depth in of_length}
    rows = [
        (task, metric, value)
        for task, metrics in tasks.items()
        for metric, value in shown_metrics(metrics).items()
        if metric not in cells
    ]
    if rows:
        yield "Tasks:"
        yield markdown_table(("task", "metric", "value"), rows, numbers=1)
    if passkeys:
        depths = [f"{depth:.0%} deep" for depth in next(iter(passkeys.values()))]
        found = [
            (f"{length:,} tokens", *(f"{share:.0%}" for share in of_length.values()))
            for length, of_length in passkeys.items()
        ]
        yield "Passkeys found, by length of the text and depth of the key in it:"
        yield markdown_table(("length", *depths), found, numbers=len(depths) + 1)


def _text_table(texts: dict[str, dict[str, Any]]) -> str:
    known = {key for text in texts.values() for key, value in text.items() if value is not None}
    columns = {key: label for key, label in SHOWN.items() if key in known}
    rows = [
        (name, text.get("split") or "", *(_number(text.get(key)) for key in columns)) for name, text in texts.items()
    ]
    return markdown_table(("text", "split", *columns.values()), rows, numbers=len(columns))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
