"""The schema of a training run's YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from perceiver_ar.hub import REPOSITORY
from perceiver_ar.models.config import PRESETS, PerceiverARConfig
from pretrain.corpus.copying import CopyTask
from pretrain.corpus.direct.config import StreamConfig
from pretrain.errors import InputError
from pretrain.initial_model import open_initial_model
from pretrain.schema import FilePath, Location, Section, dump_yaml, load_yaml, validate

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
PartName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Overrides reach a part by it: `data.mixture.NAME.weight=0.5`."""


CONFIG_FILE = "config.yaml"
"""In the run folder: the resolved configuration the run was started with."""


class RunSection(Section):
    dir: FilePath
    """Everything the run writes lies here."""
    seed: Count = 0
    """Seeds initial weights, order of data and every dropout."""


def _weight_schedule(value: Any) -> Any:
    """A number holds from step 0 on; YAML and JSON have steps as text."""
    if isinstance(value, dict):
        if len({int(step) for step in value if str(step).isdigit()}) < sum(str(step).isdigit() for step in value):
            raise ValueError(f"names a step twice: {', '.join(map(str, value))}")
        return {int(step) if str(step).isdigit() else step: weight for step, weight in value.items()}
    return {0: value}


class MixtureSection(Section):
    """A corpus of a mixture."""

    corpus: Location
    """Folder, or its URL, written by `pretrain/prepare.py`."""
    weight: Annotated[dict[Count, NonNegativeFloat], BeforeValidator(_weight_schedule)]
    """Share of the samples, relative to the other parts: a number, or one for each step from which on it holds."""
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    """A run that would read the corpus more often is refused."""

    @field_validator("weight")
    @classmethod
    def _begins_with_the_run(cls, value: dict[int, float]) -> dict[int, float]:
        if 0 not in value:
            raise ValueError(f"must say what holds from step 0 on, its first step is {min(value, default=None)}")
        return dict(sorted(value.items()))

    def weight_at(self, step: int) -> float:
        return self.weight[max(begin for begin in self.weight if begin <= step)]


@dataclass(frozen=True, kw_only=True)
class ModelSection(PerceiverARConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """A run, a checkpoint, a folder, a Lightning checkpoint of perceiver-io, or ``owner/name[@revision]`` on the Hub:
    the run starts with that model's weights, and fields that are left out are that model's."""

    @property
    def architecture(self) -> PerceiverARConfig:
        values = asdict(self)
        del values["init_from"]
        return PerceiverARConfig(**values)


class CacheSection(Section):
    """Where shards of remote corpora are kept on each node."""

    dir: FilePath | None = None
    """A folder on a local disk, shared by the node's ranks and runs; by default in the system's temporary folder."""
    max_gib: Annotated[float, Field(gt=0)] = 50


class DataSection(Section):
    """Exactly one of `corpus`, `mixture`, `stream` and `copy_task` says what is trained on."""

    corpus: Location | None = None
    """Folder, or its URL, written by `pretrain/prepare.py`."""
    mixture: Annotated[dict[PartName, MixtureSection], Field(min_length=1)] | None = None
    """Several of them, by name."""
    stream: StreamConfig | None = None
    """A data set read through `datasets` as training goes on, without preparation."""
    copy_task: CopyTask | None = None
    """Random bytes and their copy, made as training goes on."""
    tokenizer: str | None = None
    """Refuse data of any other tokenizer than this one."""
    windows: Literal["strided", "packed", "crop"] = "strided"
    """`strided` trains every token once an epoch with full context before it, `packed` cuts documents end to end into
    contexts of which the last tokens are trained, `crop` takes one random crop of every document."""
    segments: bool = False
    """Keep attention and positions within documents."""
    cache: CacheSection = CacheSection()
    read_ahead: PositiveInt = 4
    """Steps read ahead of training by a thread."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.corpus, self.mixture, self.stream, self.copy_task)) != 1:
            raise ValueError("give exactly one of data.corpus, data.mixture, data.stream and data.copy_task")
        if self.stream is not None and self.windows != "strided":
            raise ValueError(f"data.stream goes with data.windows strided only, not {self.windows}")
        if self.copy_task is not None and (self.windows != "strided" or self.segments):
            raise ValueError("data.copy_task makes windows of its own: leave out data.windows and data.segments")
        return self

    @property
    def within_documents(self) -> bool:
        """Whether a token sees its own document only: crops hold no other."""
        return self.segments or self.windows == "crop"


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
    kind: Literal["adamw"] = "adamw"
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
    windows: PositiveInt = 64
    """Validation windows scored inside the loop, spread evenly over the split."""


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
    task: Literal["causal_lm"] = "causal_lm"
    run: RunSection
    model: ModelSection
    data: DataSection
    train: TrainSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    stability: StabilitySection = StabilitySection()
    watchdog: WatchdogSection = WatchdogSection()
    logging: LoggingSection = LoggingSection()
    hub: HubSection | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _resolve_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "preset" not in value:
            return value
        own = {name: given for name, given in value.items() if name != "preset"}
        if (preset := value["preset"]) not in list(PRESETS):
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
        return {**PRESETS[preset], **own}

    @field_validator("schedule")
    @classmethod
    def _fits_run(cls, value: ScheduleSection, info: ValidationInfo) -> ScheduleSection:
        train, needed = info.data.get("train"), value.warmup_steps + value.decay_steps
        if train and needed > train.steps:
            parts = "warmup_steps + decay_steps" if value.decay_steps else "warmup_steps"
            raise ValueError(f"{parts} ({needed}) must be at most train.steps ({train.steps})")
        return value


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run a YAML file describes, with ``key.sub=value`` overrides on top.

    Raises:
        InputError: One line that lists all problems.
    """
    data = load_yaml(path, overrides)
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("init_from"), str):
        data["model"] = _initial_architecture(model, data.get("run")) | model
    return validate(RunConfig, data)


def _initial_architecture(model: dict[str, Any], run: Any) -> dict[str, Any]:
    """What `model` need not say, as the model tells that it starts from: when the run began, if it has."""
    if model.keys() >= {field.name for field in fields(PerceiverARConfig)}:
        return {}
    if "preset" in model:
        raise InputError("model.preset: leave it out: model.init_from tells the architecture")
    name = os.path.expanduser(model["init_from"])
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        with suppress(InputError):  # not begun, or what it left is refused later
            begun = validate(RunConfig, load_yaml(Path(run["dir"], CONFIG_FILE).expanduser())).model
            if begun.init_from == name:
                return asdict(begun.architecture)
    return asdict(open_initial_model(name).architecture)


def dump_config(config: RunConfig) -> str:
    """YAML text of `config` with every field, which `load_config` reads back as an equal one."""
    return dump_yaml(config.model_dump(mode="json"))
