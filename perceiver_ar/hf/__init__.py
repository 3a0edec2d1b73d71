"""Our models in `transformers`: importing this package registers them with the Auto classes and with `pipeline`."""

from perceiver_ar.hf.auto import register
from perceiver_ar.hf.cache import PerceiverARHFCache
from perceiver_ar.hf.configuration import PerceiverARHFConfig
from perceiver_ar.hf.image_processing import PerceiverIOImageProcessor
from perceiver_ar.hf.modeling import PerceiverARForCausalLM, PerceiverARModel
from perceiver_ar.hf.perceiver_configuration import (
    PerceiverImageClassifierHFConfig,
    PerceiverMaskedLMHFConfig,
    PerceiverMultimodalHFConfig,
    PerceiverOpticalFlowHFConfig,
    PerceiverTextClassifierHFConfig,
)
from perceiver_ar.hf.perceiver_modeling import (
    PerceiverIOForImageClassification,
    PerceiverIOForMaskedLM,
    PerceiverIOForMultimodalAutoencoding,
    PerceiverIOForOpticalFlow,
    PerceiverIOForSequenceClassification,
)
from perceiver_ar.hf.tokenization import byte_tokenizer, encoder_tokenizer, saved_tokenizer

__all__ = [
    "PerceiverARForCausalLM",
    "PerceiverARHFCache",
    "PerceiverARHFConfig",
    "PerceiverARModel",
    "PerceiverIOForImageClassification",
    "PerceiverIOForMaskedLM",
    "PerceiverIOForMultimodalAutoencoding",
    "PerceiverIOForOpticalFlow",
    "PerceiverIOForSequenceClassification",
    "PerceiverIOImageProcessor",
    "PerceiverImageClassifierHFConfig",
    "PerceiverMaskedLMHFConfig",
    "PerceiverMultimodalHFConfig",
    "PerceiverOpticalFlowHFConfig",
    "PerceiverTextClassifierHFConfig",
    "byte_tokenizer",
    "encoder_tokenizer",
    "saved_tokenizer",
]

register()
