"""The tokenizers that models are trained with, as fast tokenizers that need nothing but their `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perceiver_ar.hf.sentencepiece import convert_sentencepiece

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """UTF-8 bytes; id = byte + 6 behind the six special tokens, which stand in that order and are never read from text.

    `max_length` is the model's context: longer texts are encoded whole, with a warning.
    """
    symbols = [*SPECIAL_TOKENS, *_byte_symbols()]
    # A byte-pair encoding without merges leaves every text as its bytes.
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos, mask, cls, sep = SPECIAL_TOKENS
    special = dict(pad_token=pad, bos_token=bos, eos_token=eos, mask_token=mask, cls_token=cls, sep_token=sep)
    return _fast_tokenizer(max_length, tokenizer_object=tokenizer, **special)


def saved_tokenizer(file: Path, end_token_id: int, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json`; the token that ends a document also begins and pads."""
    end = Tokenizer.from_file(str(file)).id_to_token(end_token_id)
    return _fast_tokenizer(max_length, tokenizer_file=str(file), pad_token=end, bos_token=end, eos_token=end)


def sentencepiece_tokenizer(file: Path, end_token_id: int, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a SentencePiece model; the token that ends a document also begins and pads.

    Raises:
        ValueError: the model does something that fast tokenizers cannot do exactly.
    """
    tokenizer = convert_sentencepiece(file.read_bytes())
    end = tokenizer.id_to_token(end_token_id)
    return _fast_tokenizer(max_length, tokenizer_object=tokenizer, pad_token=end, bos_token=end, eos_token=end)


def encoder_tokenizer(tokenizer: PreTrainedTokenizerFast, mask_id: int | None = None) -> PreTrainedTokenizerFast:
    """Change a tokenizer of this module to one for models that read texts from their beginning; returns it.

    Texts are padded and cut at their end. With a `mask_id`, that token is the mask, and special tokens are read from
    text: only then can a text say where it is masked.
    """
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if mask_id is not None:
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(mask_id)
        tokenizer.split_special_tokens = False
    return tokenizer


def _fast_tokenizer(max_length: int, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        model_max_length=max_length,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
        # A text that spells out "[EOS]" contains that text, not the end of a document: as in training.
        split_special_tokens=True,
        **options,
    )


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte: GPT-2's table."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
