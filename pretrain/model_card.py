"""The README.md of an exported model: what it is, what it was trained on, how good it is and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from perceiver_ar.cost import count_parameters, training_flops_per_token
from perceiver_ar.models.config import PerceiverARConfig
from pretrain.corpus import Corpus
from pretrain.curves import Curve, save_picture
from pretrain.evaluation.passkey import PASSKEY, cell, cells_of
from pretrain.evaluation.results import EVALUATION, Results
from pretrain.evaluation.tables import shown_metrics
from pretrain.files import replace_text
from pretrain.metrics import read_records
from pretrain.trained_model import TrainedModel

CARD = "README.md"
PICTURE = "validation.png"
TASK = "text-generation"
METRICS = {
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "accuracy": "accuracy",
}
"""What is shown of a text, where it was measured: key in `Results` -> how people call it."""

SHOWN = {"tokens": "tokens"} | METRICS
HARNESS_METRICS = {"acc": "accuracy", "acc_norm": "accuracy, normalized by length"}

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

generator = pipeline("text-generation", model="{loaded_as}")
print(generator("def main(", max_new_tokens=200)[0]["generated_text"])
```

Texts of any length can be continued; the model reads the last {context:,} tokens. `num_latents` sets how many tokens at
the end of the prompt go through the whole stack (1 to {latents:,}), and `latent_policy="refresh"` recomputes them when
all are in use instead of letting the oldest go."""

USAGE_OF_CODE = """

The model's source is among its files, so that it also loads where `perceiver_ar` is not installed:

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{loaded_as}", trust_remote_code=True)
```"""


def write_card(
    folder: Path,
    name: str,
    trained: TrainedModel,
    corpora: dict[str, Corpus],
    *,
    loaded_as: str,
    with_code: bool = False,
) -> None:
    """Write the card of the model called `name`, which its readers load as `loaded_as`, a path or a name on the Hub.

    Beside it, the picture of its validation curve where there is a curve, and what the card tells of evaluation as
    ``evaluation.json``, where results of the folder will gather.

    Raises OSError.
    """
    model = trained.architecture
    has_curve = _draw_validation(trained, folder / PICTURE)
    results = {"model": name, "checkpoint": None, **measured(trained)}
    (folder / EVALUATION).write_text(json.dumps(results, indent=1) + "\n")
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["perceiver-ar", "long-context"],
        eval_results=_eval_results(results) or None,
    )
    sections = {
        f"# {name}": _introduction(model),
        "## Architecture": _table(
            ("field", "value"), [(f"`{field.name}`", str(getattr(model, field.name))) for field in fields(model)]
        ),
        "## Training": _training(trained) + (f"\n\n![Validation loss]({PICTURE})" if has_curve else ""),
        "## Data": "\n\n".join(_data(name, corpus) for name, corpus in corpora.items()),
        "## Evaluation": _evaluation(results),
        "## Use": (USAGE + (USAGE_OF_CODE if with_code else "")).format(
            loaded_as=loaded_as, context=model.max_seq_len, latents=model.max_latents
        ),
    }
    text = "\n\n".join(f"{title}\n\n{body}" for title, body in sections.items() if body)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / CARD)


def update_evaluation(folder: Path, results: Results) -> None:
    """Have the card in `folder` tell of `results`, and no others: in its section Evaluation and its model-index.

    Raises OSError.
    """
    path = folder / CARD
    card = ModelCard.load(path) if path.is_file() else ModelCard(f"---\npipeline_tag: {TASK}\n---\n")
    data: Any = card.data
    data.model_name = data.model_name or folder.resolve().name
    data.eval_results = _eval_results(results)
    card.text = _with_section(card.text, "## Evaluation", _evaluation(results))
    replace_text(path, str(card))


def measured(trained: TrainedModel) -> Results:
    """What `evaluation.json` tells of this checkpoint; of the text, else what the run measured last before it.

    All of a mixture is not left out of it; where the texts lay is.
    """
    path, state = trained.run_dir / EVALUATION, trained.state
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    found = found if found.get("step") == state["step"] else {}
    texts, mixed = {}, {}
    if found.get("split") == "validation":
        texts = found["corpora"]
        mixed = {key: value for key, value in found.items() if key in ("split", "loss", *SHOWN) and len(texts) > 1}
    elif validation := state["validation"]:
        known = {key: value for key, value in validation.items() if key in ("loss", *SHOWN)}
        texts = {" and ".join(state["data"]["fingerprints"]): known}
    return {
        "step": state["step"],
        "trained_tokens": state["trained_tokens"],
        "corpora": {name: {**text, "split": "validation", "location": None} for name, text in texts.items()},
        **mixed,
        "tasks": found.get("tasks", {}),
    }


def _eval_results(results: Results) -> list[EvalResult]:
    texts = [
        EvalResult(
            task_type=TASK,
            dataset_type=name.replace(" ", "-"),
            dataset_name=name,
            dataset_split=of_text.get("split"),
            metric_type=metric,
            metric_name=label,
            metric_value=round(of_text[metric], 5),
        )
        for name, of_text in results["corpora"].items()
        for metric, label in METRICS.items()
        if of_text.get(metric) is not None
    ]
    tasks = [
        EvalResult(
            task_type=TASK,
            dataset_type=task,
            dataset_name=task,
            metric_type="accuracy" if label.startswith("accuracy") else metric.partition(",")[0],
            metric_name=label,
            metric_value=value,
        )
        for task, metrics in results["tasks"].items()
        for metric, value in metrics.items()
        for label in [_metric_label(metric)]
        # Neither parts of what another metric sums up, nor how sure it is.
        if not any(metric.startswith(f"{other}, ") for other in metrics) and "_stderr" not in metric
    ]
    return texts + tasks


def _metric_label(metric: str) -> str:
    """A task's metric as people call it: ``acc_norm,strict`` is "accuracy, normalized by length, strict"."""
    name, *rest = (part.strip() for part in metric.split(","))
    label = ", ".join([HARNESS_METRICS.get(name, name.replace("_", " ")), *rest])
    return re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", label)


def _draw_validation(trained: TrainedModel, path: Path) -> bool:
    """False where nothing is known of how the validation loss went."""
    try:
        records = read_records(trained.run_dir / "metrics.jsonl")
    except FileNotFoundError:  # of a checkpoint that was moved out of its run
        return False
    step = trained.state["step"]
    validations = [record for record in records if record["kind"] == "validation" and record["step"] <= step]
    if len(validations) < 2:
        return False
    losses = [record["bits_per_byte"] for record in validations]
    save_picture(path, "Validation loss, bits per byte", [Curve("", [r["step"] for r in validations], losses)])
    return True


def _introduction(model: PerceiverARConfig) -> str:
    return (
        f"A [Perceiver AR](https://arxiv.org/abs/2202.07765) language model with {count_parameters(model):,} "
        f"parameters: the last {model.max_latents:,} tokens, the latents, read a context of {model.max_seq_len:,} "
        "tokens once and then only each other, so that context is cheap."
    )


def _training(trained: TrainedModel) -> str:
    train, tokens = trained.config.train, trained.state["trained_tokens"]
    flops = training_flops_per_token(trained.architecture) * tokens
    # Of a folder, where it lay is nobody's business.
    origin = "/".join((trained.config.model.init_from or "").split("/")[-2:])
    return (f"Started with the weights of `{origin}`. " if origin else "") + (
        f"{trained.state['step']:,} steps of {train.global_batch:,} sequences, {tokens:,} trained tokens, "
        f"{flops:.3g} FLOPs, {train.precision}; {trained.config.optimizer.kind}, peak learning rate "
        f"{trained.config.optimizer.lr:g}, {trained.config.schedule.kind} schedule."
    )


def _data(name: str, corpus: Corpus) -> str:
    manifest = corpus.manifest
    sizes = ", ".join(
        f"{name} {split.bytes:,} bytes in {split.documents:,} documents" for name, split in manifest.splits.items()
    )
    sources = [
        (source.kind, source.revision, source.licence, f"{source.documents:,}", f"{source.bytes:,}")
        for source in manifest.sources
    ]
    return (
        f"**{name}**: tokenizer `{manifest.tokenizer}`, {manifest.vocab_size:,} tokens. {sizes[0].upper()}{sizes[1:]}. "
        f"Licence of the text: {manifest.licence}. Fingerprint `{manifest.fingerprint}`.\n\n"
    ) + _table(("source", "revision", "licence", "documents", "bytes"), sources, numbers=2)


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
            parts.append(_table(("prefix left, tokens", "bits per byte", "gain"), rows, numbers=3))
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
        yield _table(("task", "metric", "value"), rows, numbers=1)
    if passkeys:
        depths = [f"{depth:.0%} deep" for depth in next(iter(passkeys.values()))]
        found = [
            (f"{length:,} tokens", *(f"{share:.0%}" for share in of_length.values()))
            for length, of_length in passkeys.items()
        ]
        yield "Passkeys found, by length of the text and depth of the key in it:"
        yield _table(("length", *depths), found, numbers=len(depths) + 1)


def _text_table(texts: dict[str, dict[str, Any]]) -> str:
    known = {key for text in texts.values() for key, value in text.items() if value is not None}
    columns = {key: label for key, label in SHOWN.items() if key in known}
    rows = [
        (name, text.get("split") or "", *(_number(text.get(key)) for key in columns)) for name, text in texts.items()
    ]
    return _table(("text", "split", *columns.values()), rows, numbers=len(columns))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """In Markdown, the last `numbers` columns aligned to the right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _with_section(text: str, title: str, body: str) -> str:
    """Markdown with another `body` under `title`, a heading of the second level; where it is new, before ``## Use``."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    titles = [part.partition("\n")[0].rstrip() for part in parts]
    section = f"{title}\n\n{body}\n\n"
    if title in titles:
        parts[titles.index(title)] = section
    else:
        parts.insert(titles.index("## Use") if "## Use" in titles else len(parts), section)
    return "".join(parts).rstrip() + "\n"
