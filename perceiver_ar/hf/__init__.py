"""Perceiver AR in `transformers`: importing this package registers it with the Auto classes and with `pipeline`."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from perceiver_ar.hf.cache import PerceiverARHFCache
from perceiver_ar.hf.configuration import PerceiverARHFConfig
from perceiver_ar.hf.modeling import PerceiverARForCausalLM, PerceiverARModel
from perceiver_ar.hf.tokenization import byte_tokenizer, saved_tokenizer

__all__ = [
    "PerceiverARForCausalLM",
    "PerceiverARHFCache",
    "PerceiverARHFConfig",
    "PerceiverARModel",
    "byte_tokenizer",
    "saved_tokenizer",
]

AutoConfig.register(PerceiverARHFConfig.model_type, PerceiverARHFConfig)
AutoModel.register(PerceiverARHFConfig, PerceiverARModel)
AutoModelForCausalLM.register(PerceiverARHFConfig, PerceiverARForCausalLM)
AutoTokenizer.register(PerceiverARHFConfig, tokenizer_class=PreTrainedTokenizerFast)
