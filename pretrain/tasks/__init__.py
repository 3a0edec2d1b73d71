"""What can be trained: a package for each task, with the schema of its runs in `config` and all else in `task`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pretrain.errors import InputError

if TYPE_CHECKING:
    from pretrain.config import RunConfig
    from pretrain.tasks.causal_lm.task import CausalLMTask
    from pretrain.tasks.image_classification.task import ImageClassificationTask
    from pretrain.tasks.masked_lm.task import MaskedLMTask
    from pretrain.tasks.multimodal.task import MultimodalTask
    from pretrain.tasks.optical_flow.task import OpticalFlowTask
    from pretrain.tasks.task import Task
    from pretrain.tasks.text_classification.task import TextClassificationTask

    # What is found by name below is checked here.
    _texts: tuple[type[Task], ...] = (CausalLMTask, MaskedLMTask, TextClassificationTask)
    _others: tuple[type[Task], ...] = (ImageClassificationTask, OpticalFlowTask, MultimodalTask)

TASKS = {
    "causal_lm": ("CausalLMConfig", "CausalLMTask", "CausalLMRelease"),
    "masked_lm": ("MaskedLMRunConfig", "MaskedLMTask", "MaskedLMRelease"),
    "text_classification": ("TextClassificationConfig", "TextClassificationTask", "TextClassificationRelease"),
    "image_classification": ("ImageClassificationConfig", "ImageClassificationTask", "ImageClassificationRelease"),
    "optical_flow": ("OpticalFlowRunConfig", "OpticalFlowTask", "OpticalFlowRelease"),
    "multimodal": ("MultimodalRunConfig", "MultimodalTask", "MultimodalRelease"),
}
"""`task` of a configuration -> the names of three classes: the schema, the task itself, what its models come with."""


def config_class(data: dict[str, Any]) -> type[RunConfig]:
    """The schema of a run's YAML file, by its `task`. Raises InputError where there is no such task."""
    name = data.get("task", "causal_lm")
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"task: must be one of {', '.join(TASKS)}, not {name!r}")
    return getattr(import_module(f"pretrain.tasks.{name}.config"), TASKS[name][0])


def open_task(config: RunConfig) -> Task:
    """What a run trains."""
    return getattr(import_module(f"pretrain.tasks.{config.task}.task"), TASKS[config.task][1])(config)
