"""``evaluation.json``: what was measured of one model, as people, the report and the model card read it.

```
model            name of the model
checkpoint       of a run: which one; null for an exported model
step             of its training, null where the model does not tell
trained_tokens   likewise
corpora          {name: {...}}, empty where only tasks were run. Each text's
                   location          folder, URL or file
                   tokens, loss, perplexity, bits_per_byte, tokens_per_second     loss in nats per token
                   accuracy          share of the tokens that the model held likeliest
                   words, word_perplexity     words between white space; exp(nats of the text / words)
                   context, latents, stride   how it was read, in tokens
                   windows, windows_of_split  scored, and how many the text has
                   loss_by_position  16 numbers, first to last latent; null where none was scored
                   ablation_windows, ablation [{reach, prefix_tokens, gain, and the six numbers first named}]
                   baselines         {order_0, order_2, xz} in bits per byte, or null
split            which split of prepared corpora; null for plain files. This and the next five not without corpora
tokens, loss, accuracy, perplexity, bits_per_byte    of all corpora together: as mixed in training, or as one text
tasks            {task: {metric: value}}, empty where none was run
```
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.exported_model import ExportedModel
from pretrain.files import replace_text
from pretrain.trained_model import TrainedModel

Results = dict[str, Any]
"""Laid out as ``evaluation.json``."""

EVALUATION = "evaluation.json"
IDENTITY = ("model", "checkpoint", "step", "trained_tokens")


def describe(model: TrainedModel | ExportedModel) -> Results:
    """Which model the results are of."""
    if isinstance(model, TrainedModel):
        origin, checkpoint = model.state, model.checkpoint.name
    else:
        origin, checkpoint = model.training or {}, None
    return {
        "model": model.name,
        "checkpoint": checkpoint,
        "step": origin.get("step"),
        "trained_tokens": origin.get("trained_tokens"),
    }


def write_results(path: Path, results: Results) -> Results:
    """Write what was measured, beside what the file already tells of the same model; returns what it tells then.

    Texts replace the texts measured earlier, all at once; tasks replace those of the same name.
    """
    earlier = None
    with suppress(OSError, ValueError):  # a file of some other kind gives way
        earlier = json.loads(path.read_text())
    if isinstance(earlier, dict) and all(earlier.get(key) == results[key] for key in IDENTITY):
        texts = results if results["corpora"] else earlier
        results = {**texts, "tasks": earlier.get("tasks", {}) | results["tasks"]}
    replace_text(path, json.dumps(results, indent=1) + "\n")
    return results
