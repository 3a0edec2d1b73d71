"""The schema of a training run's YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationInfo, field_validator

from perceiver_ar.hub import REPOSITORY
from pretrain.schema import FilePath, Section, dump_yaml, load_yaml, validate
from pretrain.tasks import config_class

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

CONFIG_FILE = "config.yaml"
"""In the run folder: the resolved configuration the run was started with."""


class RunSection(Section):
    dir: FilePath
    """Everything the run writes lies here."""
    seed: Count = 0
    """Seeds initial weights, order of data and every dropout."""


class ZeroSection(Section):
    """DeepSpeed ZeRO: what is sharded over ranks and what lives in host memory."""

    stage: Annotated[int, Field(ge=0, le=3)] = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    overlap_communication: bool = False

    @field_validator("offload_optimizer", "overlap_communication")
    @classmethod
    def _needs_sharded_optimizer(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("stage") == 0:
            raise ValueError("needs train.zero.stage 1, 2 or 3, not 0")
        return value

    @field_validator("offload_parameters")
    @classmethod
    def _needs_sharded_parameters(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("stage", 3) != 3:
            raise ValueError(f"needs train.zero.stage 3, not {info.data['stage']}")
        return value


class TrainSection(Section):
    steps: PositiveInt
    """Optimizer steps in the whole run."""
    global_batch: PositiveInt
    """Sequences per optimizer step, over all ranks and accumulation steps."""
    micro_batch: PositiveInt
    """Sequences per rank and forward pass."""
    precision: Literal["bf16", "fp32"] = "bf16"
    zero: ZeroSection = ZeroSection()
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    activation_checkpointing: Literal["none", "full", "offload"] = "none"
    attention: Literal["auto", "sdpa", "reference"] = "auto"
    """`auto` takes a flash kernel wherever one serves."""
    compile: bool = False

    @field_validator("micro_batch")
    @classmethod
    def _divides_global_batch(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("global_batch", value) % value:
            raise ValueError(f"{value} must divide train.global_batch ({info.data['global_batch']})")
        return value

    @field_validator("zero")
    @classmethod
    def _keeps_master_weights(cls, value: ZeroSection, info: ValidationInfo) -> ZeroSection:
        if value.stage == 0 and info.data.get("precision") == "bf16":
            # Measured with DeepSpeed 0.19.8: the first Adam update is 0.74 of what it should be.
            raise ValueError("stage 0 updates bf16 weights wrongly: use stage 1, or train.precision fp32")
        return value

    @field_validator("compile")
    @classmethod
    def _compiles_whole_parameters(cls, value: bool, info: ValidationInfo) -> bool:
        zero = info.data.get("zero")
        if value and zero is not None and zero.stage == 3:
            # DeepSpeed 0.19.8 fails in its first step: its gathering hooks break the compiled graph.
            raise ValueError("needs train.zero.stage 0, 1 or 2, not 3")
        return value


class OptimizerSection(Section):
    kind: Literal["adamw", "lamb"] = "adamw"
    """`lamb` (https://arxiv.org/abs/1904.00962) scales the update of each tensor by the tensor's own norm."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """On matrices only: never on biases, norms or position tables."""


class ScheduleSection(Section):
    kind: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: Count = 0
    decay_steps: Annotated[Count, Field(validate_default=True)] = 0
    """`wsd` only: length of the final decay."""
    final_lr_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of `optimizer.lr`; without effect for `constant`."""

    @field_validator("decay_steps")
    @classmethod
    def _belongs_to_wsd(cls, value: int, info: ValidationInfo) -> int:
        kind = info.data.get("kind")
        if kind == "wsd" and value == 0:
            raise ValueError("must be at least 1 for schedule.kind wsd, not 0")
        if kind not in ("wsd", None) and value > 0:
            raise ValueError(f"is for schedule.kind wsd only, not {kind}: leave it out")
        return value


class EvaluationSection(Section):
    every: Count = 500
    """Steps between validations; 0 validates only at the end."""


class ExampleEvaluationSection(EvaluationSection):
    examples: PositiveInt | None = None
    """Validation examples scored inside the loop, spread evenly over them; null for all."""


class CheckpointSection(Section):
    """When the run's state is saved, and which of the checkpoints stay."""

    every: Count = 1000
    """Steps between checkpoints; 0 saves at the end, and by `every_minutes`."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes since the last checkpoint after which another is due."""
    keep: PositiveInt = 3
    """The newest that many stay."""
    keep_every: Count = 0
    """The first one at or after each multiple of it stays for ever; 0 for none. A save that others hold up, or that
    fails, is made some steps later."""
    keep_best: bool = True
    """The first one at or after the validation with the lowest loss stays."""
    background: bool = True
    """Copy the state to host memory and write it while training goes on."""
    max_failures: PositiveInt = 5
    """Saves in a row that the file system may refuse before the run ends."""


class StabilitySection(Section):
    """What counts as a bad step, and when bad steps end the run. Steps that are not finite are always skipped."""

    window: Annotated[int, Field(ge=8)] = 128
    """Applied steps that a step is compared with; as many go by before spikes are looked for."""
    sigmas: Annotated[float, Field(gt=0)] | None = 8.0
    """A loss or gradient norm that many robust standard deviations above the window's median is a spike: its step is
    skipped. null looks for none."""
    max_skipped_steps: PositiveInt = 20
    """Skipped steps in a row after which training stops."""
    max_rise: Annotated[float, Field(gt=1)] | None = 1.5
    """Training stops where the window's median loss is that many times the lowest it has been; null never does."""


class WatchdogSection(Section):
    """Seconds without a sign of progress after which a run ends with the stacks of all its threads."""

    setup: Annotated[float, Field(ge=1)] = 1800
    """From a rank's start to the end of its first step: joining, loading, compiling."""
    step: Annotated[float, Field(ge=1)] = 900
    """For a step, and for a batch of validation."""
    save: Annotated[float, Field(ge=1)] = 1800
    """For a checkpoint, whether training waits for it or not."""
    dead_rank: Annotated[float, Field(ge=1)] = 60
    """Without a heartbeat of another rank, on whatever node."""


class LoggingSection(Section):
    every: PositiveInt = 10
    tensorboard: bool = False
    wandb_project: str | None = None
    """Log to this Weights & Biases project; offline where no key is set."""


class HubSection(Section):
    """Checkpoints go to a model repository on the Hugging Face Hub while training goes on: `step-1000` is the branch of
    step 1000, `main` has the last. The token is that of HF_TOKEN or of `hf auth login`."""

    repo: str
    """`owner/name`; it is made where it does not exist."""
    every: Count = 0
    """The first checkpoint at or after each multiple of it; 0 for the last one only."""
    private: bool = True
    """If the repository is made."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights."""
    with_code: bool = False
    """Add the model's source, for `trust_remote_code` where this package is not installed."""
    final_wait: NonNegativeFloat = 600
    """Seconds that the end of the run waits for uploads."""

    @field_validator("repo")
    @classmethod
    def _has_an_owner(cls, value: str) -> str:
        if not re.fullmatch(REPOSITORY, value):
            raise ValueError(f"must be owner/name, not {value!r}")
        return value


class RunConfig(Section):
    """What every run says; each task has a schema of its own on top, with `model` and `data`."""

    task: str
    run: RunSection
    train: TrainSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    stability: StabilitySection = StabilitySection()
    watchdog: WatchdogSection = WatchdogSection()
    logging: LoggingSection = LoggingSection()
    hub: HubSection | None = None

    @field_validator("optimizer")
    @classmethod
    def _sees_whole_tensors(cls, value: OptimizerSection, info: ValidationInfo) -> OptimizerSection:
        train = info.data.get("train")
        if value.kind == "lamb" and train and (train.zero.stage, train.precision) != (0, "fp32"):
            # Sharded optimizers hold flat parts of several tensors, of which none has a norm of its own.
            raise ValueError("kind lamb needs train.zero.stage 0 and train.precision fp32, or take adamw")
        return value

    @field_validator("schedule")
    @classmethod
    def _fits_run(cls, value: ScheduleSection, info: ValidationInfo) -> ScheduleSection:
        train, needed = info.data.get("train"), value.warmup_steps + value.decay_steps
        if train and needed > train.steps:
            parts = "warmup_steps + decay_steps" if value.decay_steps else "warmup_steps"
            raise ValueError(f"{parts} ({needed}) must be at most train.steps ({train.steps})")
        return value

    @classmethod
    def complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What a YAML file holds, with what it leaves to the model that the run starts from."""
        return data


class ExampleRunConfig(RunConfig):
    """A run on numbered examples."""

    evaluation: ExampleEvaluationSection = ExampleEvaluationSection()


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run a YAML file describes, with ``key.sub=value`` overrides on top.

    Raises:
        InputError: One line that lists all problems.
    """
    data = load_yaml(path, overrides)
    schema = config_class(data)
    return validate(schema, schema.complete(data))


def read_config(data: dict[str, Any]) -> RunConfig:
    """The configuration that a checkpoint keeps. Raises InputError."""
    return validate(config_class(data), data)


def dump_config(config: RunConfig) -> str:
    """YAML text of `config` with every field, which `load_config` reads back as an equal one."""
    data = config.model_dump(mode="json")
    first = ("task", "run", "model", "data")  # what a reader looks for
    return dump_yaml({name: data[name] for name in first} | data)
