"""The README.md of an exported model: what it is, what it was trained on, how good it is and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from perceiver_ar.cost import count_parameters, training_flops_per_token
from perceiver_ar.models.config import PerceiverARConfig
from pretrain.corpus import Corpus
from pretrain.curves import Curve, save_picture
from pretrain.evaluation.results import EVALUATION, Results
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

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

generator = pipeline("text-generation", model="{name}")
print(generator("def main(", max_new_tokens=200)[0]["generated_text"])
```

Texts of any length can be continued; the model reads the last {context:,} tokens. `num_latents` sets how many tokens at
the end of the prompt go through the whole stack (1 to {latents:,}), and `latent_policy="refresh"` recomputes them when
all are in use instead of letting the oldest go."""

USAGE_OF_CODE = """

The model's source is among its files, so that it also loads where `perceiver_ar` is not installed:

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{name}", trust_remote_code=True)
```"""


def write_card(
    folder: Path, name: str, trained: TrainedModel, corpora: dict[str, Corpus], *, with_code: bool = False
) -> None:
    """Write the card of the model called `name`, and the picture of its validation curve where there is a curve.

    Raises OSError.
    """
    model = trained.architecture
    has_curve = _draw_validation(trained, folder / PICTURE)
    results = measured(trained)
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
            name=name, context=model.max_seq_len, latents=model.max_latents
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
    """What `evaluation.json` tells of this checkpoint; of the text, else what the run measured last before it."""
    path, state = trained.run_dir / EVALUATION, trained.state
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    found = found if found.get("step") == state["step"] else {}
    if found.get("split") == "validation":
        return found
    texts = {" and ".join(state["data"]["fingerprints"]): state["validation"]} if state["validation"] else {}
    return {"split": "validation", "corpora": texts, "tasks": found.get("tasks", {})}


def _eval_results(results: Results) -> list[EvalResult]:
    texts = [
        EvalResult(
            task_type=TASK,
            dataset_type=name.replace(" ", "-"),
            dataset_name=name,
            dataset_split=results["split"],
            metric_type=metric,
            metric_name=label,
            metric_value=round(of_text[metric], 5),
        )
        for name, of_text in results["corpora"].items()
        for metric, label in METRICS.items()
        if of_text.get(metric) is not None
    ]
    tasks = [
        EvalResult(task_type=TASK, dataset_type=task, dataset_name=task, metric_type=metric, metric_value=value)
        for task, metrics in results["tasks"].items()
        for metric, value in metrics.items()
        # Neither parts of what another metric sums up, nor how sure it is.
        if not any(metric.startswith(f"{other}, ") for other in metrics) and "_stderr" not in metric
    ]
    return texts + tasks


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
        shown = dict(texts)
        if len(texts) > 1:
            shown["mixed as in training"] = results
        split = f"{results['split'].capitalize()} text" if results["split"] else "Text"
        parts += [f"{split}:", _text_table(shown)]
    for name, of_text in texts.items():
        if ablation := of_text.get("ablation"):
            rows = [(f"{r['prefix_tokens']:,}", f"{r['bits_per_byte']:.4f}", f"{r['gain']:+.4f}") for r in ablation]
            parts.append(f"With the prefix cut, on {name}:")
            parts.append(_table(("prefix left, tokens", "bits per byte", "gain"), rows, numbers=3))
    if results["tasks"]:
        rows = [
            (task, metric, f"{value:,.4f}")
            for task, metrics in results["tasks"].items()
            for metric, value in metrics.items()
        ]
        parts += ["Tasks:", _table(("task", "metric", "value"), rows, numbers=1)]
    return "\n\n".join(parts)


def _text_table(texts: dict[str, dict[str, Any]]) -> str:
    known = {key for text in texts.values() for key, value in text.items() if value is not None}
    columns = {key: label for key, label in ({"tokens": "tokens"} | METRICS).items() if key in known}
    rows = [(name, *(_number(text.get(key)) for key in columns)) for name, text in texts.items()]
    return _table(("text", *columns.values()), rows, numbers=len(columns))


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
