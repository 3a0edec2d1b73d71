"""The tokenizer of a converted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from perceiver_ar.convert.sources import SourceModel
from perceiver_ar.hf import byte_tokenizer, encoder_tokenizer
from perceiver_ar.hf.configuration import BYTE_VOCABULARY
from perceiver_ar.hub import read_json
from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.perceiver_config import MaskedLMConfig, TextClassifierConfig

BYTES = "bytes"
_BYTE_TOKENIZERS = (BYTES, "deepmind/language-perceiver", "krasserm/perceiver-io-mlm")


def find_tokenizer(source: SourceModel, given: str | None) -> PreTrainedTokenizerFast | None:
    """The tokenizer `given` (`bytes`, a folder, a name on the Hub), else the source's own; None where none is known.

    Raises:
        OSError: a file of it cannot be read.
        ValueError: there is no such tokenizer, it is damaged, or it has more tokens than the model.
    """
    config = source.architecture
    if not isinstance(config, PerceiverARConfig | MaskedLMConfig | TextClassifierConfig):
        return None
    tokenizer = _find(source, given, config.max_seq_len, config.vocab_size)
    if tokenizer is None:
        return None
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{given or source.name}: the tokenizer has {len(tokenizer):,} tokens, the model {config.vocab_size:,}"
        )
    if isinstance(config, PerceiverARConfig):
        return tokenizer
    return encoder_tokenizer(tokenizer, tokenizer.mask_token_id if isinstance(config, MaskedLMConfig) else None)


def _find(source: SourceModel, given: str | None, context: int, vocab_size: int) -> PreTrainedTokenizerFast | None:
    if (given or source.trained_with) in _BYTE_TOKENIZERS:
        return byte_tokenizer(context)
    folder = source.folder if given is None else Path(given)
    own = None if folder is None else folder / "tokenizer_config.json"
    if own is not None and own.is_file() and read_json(own).get("tokenizer_class") == "PerceiverTokenizer":
        return _of_bytes(source, context)
    if given is not None or (own is not None and own.is_file()):
        return _load(given or str(folder), context)
    if source.trained_with is None and vocab_size == BYTE_VOCABULARY:
        return _of_bytes(source, context)
    return None


def _of_bytes(source: SourceModel, context: int) -> PreTrainedTokenizerFast:
    """In place of transformers' `PerceiverTokenizer`.

    It puts [CLS] before a text and [SEP] behind it, which models that read whole texts get in its pipelines.
    """
    tokenizer = byte_tokenizer(context)
    if source.folder is not None and not isinstance(source.architecture, PerceiverARConfig):
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
        )
    return tokenizer


def _load(name: str, context: int) -> PreTrainedTokenizerFast:
    folder = Path(name)
    # A tokenizer.json says all; from a vocabulary alone, the tokenizer's class knows how to make one.
    loader: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    options: dict[str, Any] = dict(padding_side="left", truncation_side="left", model_max_length=context)
    try:
        return loader.from_pretrained(name, **options)
    except Exception as error:  # a damaged one makes the libraries fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name}: its tokenizer cannot be loaded: {reason}") from error
