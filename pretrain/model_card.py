"""The README.md of an exported model: what it is, what it was trained on, how good it is and how to use it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from perceiver_ar.cost import count_parameters, training_flops_per_token
from perceiver_ar.models.config import PerceiverARConfig
from pretrain.corpus import Corpus
from pretrain.trained_model import TrainedModel

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


def model_card(name: str, trained: TrainedModel, corpora: dict[str, Corpus]) -> ModelCard:
    """The card, with the validation metrics as model-index where the checkpoint has any."""
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["perceiver-ar", "long-context"],
        eval_results=_eval_results(corpora, metrics(trained)),
    )
    sections = {
        f"# {name}": _introduction(trained),
        "## Architecture": _architecture(trained.config.model),
        "## Training": _training(trained),
        "## Data": "\n\n".join(_data(name, corpus) for name, corpus in corpora.items()),
        "## Evaluation": _evaluation(metrics(trained)),
        "## Use": USAGE.format(
            name=name, context=trained.config.model.max_seq_len, latents=trained.config.model.max_latents
        ),
    }
    text = "\n\n".join(f"{title}\n\n{body}" for title, body in sections.items() if body)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def metrics(trained: TrainedModel) -> dict[str, Any] | None:
    """`evaluation.json` if it is of this checkpoint, else what the run measured last before it, or None."""
    path = trained.run_dir / "evaluation.json"
    if path.is_file():
        evaluation = json.loads(path.read_text())
        if evaluation["step"] == trained.state["step"] and evaluation["split"] == "validation":
            return evaluation
    return trained.state["validation"]


def _eval_results(corpora: dict[str, Corpus], measured: dict[str, Any] | None) -> list[EvalResult] | None:
    if measured is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="-".join(corpora),
            dataset_name=" and ".join(corpora),
            dataset_split="validation",
            dataset_revision="-".join(corpus.manifest.fingerprint for corpus in corpora.values()),
            metric_type=kind,
            metric_name=label,
            metric_value=round(measured[kind], 5),
        )
        for kind, label in {"bits_per_byte": "bits per byte", "perplexity": "perplexity per token"}.items()
    ]


def _introduction(trained: TrainedModel) -> str:
    model = trained.config.model
    return (
        f"A [Perceiver AR](https://arxiv.org/abs/2202.07765) language model with {count_parameters(model):,} "
        f"parameters: the last {model.max_latents:,} tokens, the latents, read a context of {model.max_seq_len:,} "
        "tokens once and then only each other, so that context is cheap."
    )


def _architecture(model: PerceiverARConfig) -> str:
    rows = [f"| `{field.name}` | {getattr(model, field.name)} |" for field in fields(model)]
    return "\n".join(["| field | value |", "|---|---|", *rows])


def _training(trained: TrainedModel) -> str:
    train, tokens = trained.config.train, trained.state["trained_tokens"]
    flops = training_flops_per_token(trained.config.model) * tokens
    return (
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
        f"| {source.kind} | {source.revision} | {source.licence} | {source.documents:,} | {source.bytes:,} |"
        for source in manifest.sources
    ]
    table = ["| source | revision | licence | documents | bytes |", "|---|---|---|---:|---:|", *sources]
    return (
        f"**{name}**: tokenizer `{manifest.tokenizer}`, {manifest.vocab_size:,} tokens. {sizes[0].upper()}{sizes[1:]}. "
        f"Licence of the text: {manifest.licence}. Fingerprint `{manifest.fingerprint}`.\n\n" + "\n".join(table)
    )


def _evaluation(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    text = (
        f"Validation text: {measured['bits_per_byte']:.4f} bits per byte, perplexity {measured['perplexity']:.3f} per "
        "token"
    )
    if "corpora" not in measured:
        return text + "."
    text += f", over {measured['tokens']:,} tokens."
    for name, of_corpus in measured["corpora"].items():
        rows = [
            f"| {row['prefix_tokens']:,} | {row['bits_per_byte']:.4f} | {row['gain']:+.4f} |"
            for row in of_corpus["ablation"]
        ]
        if rows:
            table = ["| prefix left, tokens | bits per byte | gain |", "|---:|---:|---:|", *rows]
            text += f"\n\nWith the prefix cut, on {name}:\n\n" + "\n".join(table)
    return text
