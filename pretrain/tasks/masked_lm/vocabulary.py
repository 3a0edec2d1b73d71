"""What masking must know of a tokenizer: which ids stand for text, where words begin, and which id is the mask."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pretrain.corpus.tokenizers import BYTES, Tokenizer
from pretrain.errors import InputError

BYTE_MASK = 3
"""Of the byte tokenizer, as in Perceiver IO."""
MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>")
"""Names that a tokenizer's mask token goes by."""


@dataclass(frozen=True)
class MaskingVocabulary:
    """Properties of the ids below the tokenizer's `vocab_size`, (vocab_size,) bool each."""

    is_text: np.ndarray
    """Whether it stands for text; special tokens and gaps do not."""
    begins_word: np.ndarray
    """Whether the text of the id, behind other text, begins with whitespace."""
    is_blank: np.ndarray
    """Whether it is nothing but whitespace."""
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, mask_id: int | None) -> MaskingVocabulary:
        """Raises as `find_mask_id` does."""
        texts = _texts(tokenizer, range(tokenizer.vocab_size))
        return cls(
            np.array([bool(text) for text in texts]),
            np.array([text[:1].isspace() for text in texts]),
            np.array([text.isspace() for text in texts]),
            find_mask_id(tokenizer, mask_id),
        )

    def words(self, tokens: np.ndarray) -> np.ndarray:
        """Number of the word that each token belongs to, ascending; special tokens have numbers of their own.

        A word is what stands between whitespace, together with the whitespace before it.
        """
        after_blank = np.concatenate([[False], self.is_blank[tokens[:-1]]])
        begins = self.begins_word[tokens] & ~after_blank
        special = ~self.is_text[tokens]
        after_special = np.concatenate([[False], special[:-1]])
        return np.cumsum(begins | special | after_special)


def find_mask_id(tokenizer: Tokenizer, wanted: int | None) -> int:
    """`wanted`, or the id of the tokenizer's mask token.

    Raises InputError where there is none, or `wanted` is text.
    """
    if wanted is not None:
        if wanted < tokenizer.vocab_size and (text := _texts(tokenizer, [wanted])[0]):
            raise InputError(f"masking.mask_id: {wanted} is {text!r} for tokenizer {tokenizer.name}: choose another")
        return wanted
    if tokenizer.name == BYTES:
        return BYTE_MASK
    for name, content in tokenizer.files.items():
        if name.endswith(".json"):
            added = {token["content"]: token["id"] for token in json.loads(content)["added_tokens"]}
            if found := [added[name] for name in MASK_TOKENS if name in added]:
                return found[0]
    raise InputError(
        f"masking.mask_id: tokenizer {tokenizer.name} has no mask token: give an id that is no text, such as "
        f"{tokenizer.vocab_size} with model.vocab_size {tokenizer.vocab_size + 1}"
    )


def _texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """What each id stands for; nothing for special tokens and gaps."""
    # Alone, an id's text may lack the space before it: only behind another one does it tell.
    alone = ((id, tokenizer.decode([id])) for id in range(tokenizer.vocab_size))
    before, known = next((id, text) for id, text in alone if text.isascii() and text.isprintable() and text.strip())
    return [tokenizer.decode([before, id])[len(known) :] for id in ids]
