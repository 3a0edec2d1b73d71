"""``evaluation.json``: what was measured of one model, as people, the report and the model card read it.

```
model            name of the model
checkpoint       of a run: which one; null for an exported model
step             of its training, null where the model does not tell
trained_tokens   likewise; trained_images and so on, where it has not learned from tokens
corpora          {name: {...}}, empty where only tasks were run. Each text's
                   location          folder, URL or file; null of what came with an export
                   split             of a prepared corpus; null for plain files
                   tokens, loss, perplexity, bits_per_byte     loss in nats per token
                   accuracy          share of the tokens that the model held likeliest
                   tokens_per_second
                   words, word_perplexity     words between white space; exp(nats of the text / words)
                   context, latents, stride   how it was read, in tokens
                   windows, windows_of_split  scored, and how many the text has
                   loss_by_position  16 numbers, first to last latent; null where none was scored
                   ablation_windows, ablation [{reach, prefix_tokens, gain, and as above: tokens to accuracy}]
                   baselines         {order_0, order_2, xz} in bits per byte, or null
split            of a run's corpora. This and the next five not without corpora; of an exported model, only where its
                 run was trained on several
tokens, loss, accuracy, perplexity, bits_per_byte    of all of a run's corpora together: as mixed in training, or, of
                 other text than its own, as one text
tasks            {task: {metric: value}}, empty where none was run; NAME_stderr is the standard error of NAME. The task
                 "validation" is the validation data of a run whose model does not continue text
```
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.exported_model import ExportedModel
from pretrain.files import replace_text
from pretrain.tasks import open_task
from pretrain.trained_run import TrainedRun

Results = dict[str, Any]
"""Laid out as ``evaluation.json``."""

EVALUATION = "evaluation.json"
TEXT_METRICS = {
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity per token",
    "word_perplexity": "perplexity per word",
    "accuracy": "accuracy",
}
"""What is shown of a text, where it was measured: key -> how people call it."""
SHOWN = {"tokens": "tokens"} | TEXT_METRICS


def describe(model: TrainedRun | ExportedModel) -> Results:
    """Which model the results are of."""
    if isinstance(model, TrainedRun):
        unit = open_task(model.config).unit
        step, trained, checkpoint = model.state["step"], model.state["trained_targets"], model.checkpoint.name
    else:
        unit, checkpoint, told = "tokens", None, model.training or {}
        step, trained = told.get("step"), told.get("trained_tokens")
    return {"model": model.name, "checkpoint": checkpoint, "step": step, f"trained_{unit}": trained}


def write_results(path: Path, model: TrainedRun | ExportedModel, measured: Results) -> tuple[Results, list[str]]:
    """Write what was measured of the model, beside what the file already tells of it.

    A run's texts replace those measured earlier, all at once, for their sum; an exported model's replace those of the
    same name. So do tasks. No sample of a text replaces what was measured on the whole of it.

    Returns what the file tells then, and the names of the texts whose samples are not in it.
    """
    identity = describe(model)
    results = {**identity, **measured}
    earlier = _read_results(path, identity, is_in_model(path, model))
    texts, texts_before = measured["corpora"], earlier.get("corpora", {})
    if isinstance(model, ExportedModel):
        texts = {_among_others(name, text): text for name, text in texts.items()}
    outdone = [name for name, text in texts.items() if name in texts_before and _is_sample_of(text, texts_before[name])]
    if isinstance(model, ExportedModel):
        gathered = texts_before | {name: text for name, text in texts.items() if name not in outdone}
        results = {**earlier, **identity, "corpora": gathered, "tasks": measured["tasks"]}
    elif earlier and (outdone or not texts):
        results, outdone = {**earlier, "tasks": measured["tasks"]}, list(texts)
    results["tasks"] = earlier.get("tasks", {}) | results["tasks"]
    replace_text(path, json.dumps(results, indent=1) + "\n")
    return results, outdone


def is_in_model(path: Path, model: TrainedRun | ExportedModel) -> bool:
    """Whether these are the results that an exported folder tells of itself."""
    return isinstance(model, ExportedModel) and path.resolve() == (model.folder / EVALUATION).resolve()


def _read_results(path: Path, identity: Results, in_model: bool) -> Results:
    """What the file tells of the same model; nothing where it is of another, or of some other kind."""
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    # A folder may be called otherwise now.
    compared = {key: value for key, value in identity.items() if key != "model" or not in_model}
    is_same = isinstance(earlier, dict) and all(earlier.get(key) == value for key, value in compared.items())
    return earlier if is_same else {}


def _among_others(name: str, text: dict[str, Any]) -> str:
    """A corpus as such is its validation text."""
    return name if text["split"] in (None, "validation") else f"{name}, {text['split']} text"


def _is_sample_of(text: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether earlier all windows of the same text were scored, and now fewer. Validation in training does not tell."""
    was_whole = "windows" in earlier and earlier["windows"] == earlier["windows_of_split"]
    return was_whole and text["windows"] < text["windows_of_split"] and text["split"] == earlier.get("split")
