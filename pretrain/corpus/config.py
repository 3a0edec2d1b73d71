"""What a run on text is trained on, as its YAML file says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from pretrain.config import Count, EvaluationSection, RunConfig
from pretrain.corpus.copying import CopyTask
from pretrain.corpus.direct.config import StreamConfig
from pretrain.schema import FilePath, Location, Section

PartName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Overrides reach a part by it: `data.mixture.NAME.weight=0.5`."""


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


class CorpusEvaluationSection(EvaluationSection):
    windows: PositiveInt = 64
    """Validation windows scored inside the loop, spread evenly over the split."""


class CorpusRunConfig(RunConfig):
    """A run on windows of token corpora."""

    data: DataSection
    evaluation: CorpusEvaluationSection = CorpusEvaluationSection()

    @property
    def vocab_size(self) -> int:
        """Ids that the model has."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Tokens of a window."""
        raise NotImplementedError

    @property
    def latents(self) -> int:
        """Of these, the last so many that are trained."""
        raise NotImplementedError
