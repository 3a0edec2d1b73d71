"""What a converted model is, and the model card that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from perceiver_ar.convert.modules import Architecture
from perceiver_ar.convert.sources import AUDIO, TRANSFORMERS, SourceModel
from perceiver_ar.hf import (
    PerceiverARForCausalLM,
    PerceiverIOForImageClassification,
    PerceiverIOForMaskedLM,
    PerceiverIOForMultimodalAutoencoding,
    PerceiverIOForOpticalFlow,
    PerceiverIOForSequenceClassification,
)
from perceiver_ar.hub import MODEL_TYPE, PERCEIVER_IO_TYPES
from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)


class Kind(NamedTuple):
    """What is the same for all models of a kind."""

    title: str
    model: Any
    """Its class in `perceiver_ar.hf`."""
    auto_class: str
    task: str | None = None
    """Of `pipeline`."""


KINDS: dict[type, Kind] = {
    PerceiverARConfig: Kind("causal language model", PerceiverARForCausalLM, "AutoModelForCausalLM", "text-generation"),
    MaskedLMConfig: Kind("masked language model", PerceiverIOForMaskedLM, "AutoModelForMaskedLM", "fill-mask"),
    TextClassifierConfig: Kind(
        "text classifier",
        PerceiverIOForSequenceClassification,
        "AutoModelForSequenceClassification",
        "text-classification",
    ),
    ImageClassifierConfig: Kind(
        "image classifier",
        PerceiverIOForImageClassification,
        "AutoModelForImageClassification",
        "image-classification",
    ),
    OpticalFlowConfig: Kind("optical flow model", PerceiverIOForOpticalFlow, "AutoModel", "optical-flow"),
    MultimodalConfig: Kind("multimodal autoencoder", PerceiverIOForMultimodalAutoencoding, "AutoModel"),
}

CARD = """\
# {name}

{kind} with {parameters:,} parameters, converted from `{source}`,
a model of {library}. It computes the same {outputs}

```python
{imports}from transformers import {loader}

model = {loader}.from_pretrained("{name}")
```

{notes}

Licence: {licence}.
"""
PERCEIVER_AR = """\
logits: the last
{latents:,} of {context:,} tokens, the latents, read the others once ([Perceiver AR](https://arxiv.org/abs/2202.07765))."""
PERCEIVER_IO = "outputs ([Perceiver IO](https://arxiv.org/abs/2107.14795))."
PERCEIVER_IO_LIBRARY = "[krasserm/perceiver-io](https://github.com/krasserm/perceiver-io)"
LIBRARIES = {
    TRANSFORMERS: "[transformers](https://github.com/huggingface/transformers)",
    **dict.fromkeys((MODEL_TYPE, *PERCEIVER_IO_TYPES), "perceiver_ar"),
}
"""By the type of a model; all others are of the first."""
TEXT_NOTE = 'Its tokenizer lies beside it: `AutoTokenizer.from_pretrained`, or `pipeline("{task}")`.'
IDS_NOTE = "It has no tokenizer: it reads ids."
TASK_NOTE = '`pipeline("{task}")` knows it.'


def kind_of(source: SourceModel) -> Kind:
    kind = KINDS[type(source.architecture)]
    return kind._replace(title="symbolic audio model", task=None) if source.model_type == AUDIO else kind


def card(name: str, source: SourceModel, parameters: int, *, has_tokenizer: bool, head: str | None = None) -> ModelCard:
    """The card of the model in a folder `name`: ours, or that of a class `head` of transformers."""
    kind, config = kind_of(source), source.architecture
    tags, outputs = ["perceiver-io"], PERCEIVER_IO
    if isinstance(config, PerceiverARConfig):
        tags = ["perceiver-ar", "long-context"]
        outputs = PERCEIVER_AR.format(latents=config.max_latents, context=config.max_seq_len)
    task = kind.task if has_tokenizer or not reads_text(config) else None
    if task == "optical-flow" and head is not None:
        task = None  # transformers has no such pipeline
    licence = None if source.folder is None else _licence(source.folder / "README.md")
    data = ModelCardData(
        model_name=name,
        license=licence,
        library_name="transformers",
        pipeline_tag=task,
        tags=tags,
    )
    notes = TASK_NOTE if task else ""
    if reads_text(config):
        notes = TEXT_NOTE if has_tokenizer else IDS_NOTE
    text = CARD.format(
        name=name,
        kind=f"{'An' if kind.title[0] in 'aio' else 'A'} {kind.title}",
        parameters=parameters,
        source=source.name,
        library=LIBRARIES.get(source.model_type, PERCEIVER_IO_LIBRARY),
        outputs=outputs,
        imports="import perceiver_ar.hf  # registers the model with transformers\n" if head is None else "",
        loader=head or kind.auto_class,
        notes=notes.format(task=task),
        licence=licence or "the source does not state one",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def reads_text(config: Architecture) -> bool:
    return isinstance(config, PerceiverARConfig | MaskedLMConfig | TextClassifierConfig)


def _licence(card: Path) -> str | None:
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, YAMLError):  # there is no card, or one that says nothing
        return None
