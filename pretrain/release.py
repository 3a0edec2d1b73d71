"""What a trained model of any task is published with, beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pretrain.errors import InputError
from pretrain.metrics import BOOKKEEPING
from pretrain.tasks import TASKS, open_task
from pretrain.trained_run import TrainedRun

if TYPE_CHECKING:  # transformers takes seconds to import: bad input is not to wait for it
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

VALIDATION = "validation"
"""What results of a run's own validation data are called, among those of tasks in ``evaluation.json``."""
TOLD_OF_DATA = ("end_id", "tokenizer", "tokenizer_hash", "fingerprints")
"""In ``training.json``, where the checkpoint knows it."""
SHOWN_LABELS = 20
PERCEIVER = "[Perceiver](https://arxiv.org/abs/2103.03206)"
PERCEIVER_IO = "[Perceiver IO](https://arxiv.org/abs/2107.14795)"


class Release:
    """What all tasks have in common; each has a class of its own on top, in its package's `release`."""

    pipeline_tag: str | None = None
    """The pipeline of `transformers` that the model works in, where the Hub knows it."""
    kind: str
    """What the model does, as model cards call it."""
    tags: Sequence[str] = ("perceiver",)
    rows = "examples"
    """What a batch consists of."""

    def __init__(self, trained: TrainedRun, data: Sequence[str] | None = None) -> None:
        """`data` says where the run's data are now, if they have moved.

        Raises `InputError` where the task has no use for them.
        """
        if data is not None:
            raise InputError(f"--data: is for runs on corpora, not on {trained.config.task}: leave it out")
        self.trained = trained

    def check(self) -> None:
        """Raises `InputError` where data are needed that are not there: better before a long export than in it."""

    @property
    def architecture(self) -> Any:
        """What the model is built from, a dataclass."""
        return self.trained.config.model.architecture  # type: ignore[attr-defined]

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, where the model has any."""
        return self.trained.state["data"].get("labels")

    def hf_class(self) -> type[PreTrainedModel]:
        """The Hugging Face model; its weights lie under ``model.``."""
        raise NotImplementedError

    def hf_config(self) -> PreTrainedConfig:
        return self.hf_class().config_class.of(self.architecture, self.labels)  # type: ignore[union-attr]

    def processors(self) -> list[Any]:
        """What makes the model's inputs, things with `save_pretrained`. Raises `InputError` where it cannot be made."""
        return []

    def generation_config(self) -> GenerationConfig | None:
        """Of models that generate."""
        return None

    def training_record(self) -> dict[str, Any]:
        """``training.json``: what programs that open the folder want to know of the training."""
        state, unit = self.trained.state, open_task(self.trained.config).unit
        return {
            "run": self.trained.run_dir.name,
            "step": state["step"],
            f"trained_{unit}": state["trained_targets"],
            "precision": self.trained.config.train.precision,
            **{key: value for key, value in state["data"].items() if key in TOLD_OF_DATA},
        }

    def validated(self) -> dict[str, Any]:
        """What the run measured last before the checkpoint, laid out as in ``evaluation.json``."""
        record = self.trained.state["validation"] or {}
        measures = {
            name: value
            for name, value in record.items()
            if name == "loss" or (name not in BOOKKEEPING and isinstance(value, float))
        }
        return {"corpora": {}, "tasks": {VALIDATION: measures} if measures else {}}

    def introduction(self) -> str:
        """What the model is, in a sentence or two."""
        raise NotImplementedError

    def data(self) -> str:
        """What it was trained on."""
        prints = self.trained.state["data"]["fingerprints"]
        told = ", ".join(f"{name} `{fingerprint}`" for name, fingerprint in prints.items())
        return f"{self.origin()}. Fingerprints: {told}."

    def origin(self) -> str:
        """Where the data came from, without the place that a folder had: that is nobody's business."""
        data: Any = self.trained.config.data  # type: ignore[attr-defined]
        if data.folder is not None:
            return f"Folder `{data.folder.name}`"
        return f"Data set `{'/'.join(data.dataset.rstrip('/').split('/')[-2:])}`"

    def usage(self, loaded_as: str) -> str:
        """How the model is used that readers load as `loaded_as`, a path or a name on the Hub; in Markdown."""
        raise NotImplementedError

    def usage_of_code(self, loaded_as: str) -> str:
        """Python that loads the model where this package is not installed."""
        if self.pipeline_tag is None:
            load = f'model = AutoModel.from_pretrained("{loaded_as}", trust_remote_code=True)'
            return f"from transformers import AutoModel\n\n{load}"
        load = f'run = pipeline("{self.pipeline_tag}", model="{loaded_as}", trust_remote_code=True)'
        return f"from transformers import pipeline\n\n{load}"

    def named_labels(self) -> str:
        """A colon and the names of the classes, the first ones of many; nothing where they have none."""
        if not (labels := self.labels):
            return ""
        shown = ", ".join(f"`{label}`" for label in labels[:SHOWN_LABELS])
        return f": {shown} and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else f": {shown}"

    def num_parameters(self) -> int:
        import torch

        with torch.device("meta"):
            return sum(parameter.numel() for parameter in open_task(self.trained.config).build().parameters())


def open_release(trained: TrainedRun, data: Sequence[str] | None = None) -> Release:
    """As a task's `Release`, of the run's task."""
    task = trained.config.task
    return getattr(import_module(f"pretrain.tasks.{task}.release"), TASKS[task][2])(trained, data)
