"""The tokenizer of a converted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from perceiver_ar.convert.sources import SourceModel
from perceiver_ar.hf import byte_tokenizer
from perceiver_ar.hf.configuration import BYTE_VOCABULARY
from perceiver_ar.hub import read_json

BYTES = "bytes"
_BYTE_TOKENIZERS = (BYTES, "deepmind/language-perceiver", "krasserm/perceiver-io-mlm")


def find_tokenizer(source: SourceModel, given: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer `given` (`bytes`, a folder, a name on the Hub), else the source's own; None where none is known.

    Raises:
        OSError: a file of it cannot be read.
        ValueError: there is no such tokenizer, it is damaged, or it has more tokens than the model.
    """
    context, vocab_size = source.architecture.max_seq_len, source.architecture.vocab_size
    has_own = source.folder is not None and (source.folder / "tokenizer_config.json").is_file()
    tokenizer: PreTrainedTokenizerBase
    if (given or source.trained_with) in _BYTE_TOKENIZERS:
        tokenizer = byte_tokenizer(context)
    elif given is not None or has_own:
        tokenizer = _load(given or str(source.folder), context)
    elif source.trained_with is None and vocab_size == BYTE_VOCABULARY:
        tokenizer = byte_tokenizer(context)
    else:
        return None
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"{given or source.name}: the tokenizer has {len(tokenizer):,} tokens, the model {vocab_size:,}"
        )
    return tokenizer


def _load(name: str, context: int) -> PreTrainedTokenizerBase:
    folder = Path(name)
    if (folder / "tokenizer_config.json").is_file():
        kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
        if kind == "PerceiverTokenizer":
            return byte_tokenizer(context)
    # A tokenizer.json says all; from a vocabulary alone, the tokenizer's class knows how to make one.
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    options: dict[str, Any] = dict(padding_side="left", truncation_side="left", model_max_length=context)
    try:
        return loader.from_pretrained(name, **options)
    except Exception as error:  # a damaged one makes the libraries fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name}: its tokenizer cannot be loaded: {reason}") from error
