"""Which classes of this package `transformers` gives by its Auto classes and by `pipeline`."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pipelines import PIPELINE_REGISTRY

from perceiver_ar.hf.flow_pipeline import OpticalFlowPipeline
from perceiver_ar.hf.image_processing import PerceiverIOImageProcessor
from perceiver_ar.hf.modeling import PerceiverARForCausalLM, PerceiverARModel
from perceiver_ar.hf.perceiver_modeling import (
    PerceiverIOForImageClassification,
    PerceiverIOForMaskedLM,
    PerceiverIOForMultimodalAutoencoding,
    PerceiverIOForOpticalFlow,
    PerceiverIOForSequenceClassification,
)

MODELS: dict[str, list[type[PreTrainedModel]]] = {
    "AutoModel": [PerceiverARModel, PerceiverIOForOpticalFlow, PerceiverIOForMultimodalAutoencoding],
    "AutoModelForCausalLM": [PerceiverARForCausalLM],
    "AutoModelForMaskedLM": [PerceiverIOForMaskedLM],
    "AutoModelForSequenceClassification": [PerceiverIOForSequenceClassification],
    "AutoModelForImageClassification": [PerceiverIOForImageClassification],
}
READ_TEXT = [PerceiverARForCausalLM, PerceiverIOForMaskedLM, PerceiverIOForSequenceClassification]


def register() -> None:
    """Have `transformers` know all of them. Once in a process."""
    configs: set[Any] = {model.config_class for models in MODELS.values() for model in models}
    for config in configs:
        AutoConfig.register(config.model_type, config)
    for auto, models in MODELS.items():
        for model in models:
            getattr(transformers, auto).register(model.config_class, model)
    for model in READ_TEXT:
        AutoTokenizer.register(model.config_class, tokenizer_class=PreTrainedTokenizerFast)
    AutoImageProcessor.register(
        PerceiverIOForImageClassification.config_class, image_processor_classes={"pil": PerceiverIOImageProcessor}
    )
    PIPELINE_REGISTRY.register_pipeline("optical-flow", OpticalFlowPipeline, pt_model=AutoModel, type="image")


def auto_classes(config: type) -> dict[str, type]:
    """By the name of the Auto class, what it gives for the model of such a `config`."""
    models = {auto: model for auto, several in MODELS.items() for model in several if model.config_class is config}
    return {"AutoConfig": config, **models}
