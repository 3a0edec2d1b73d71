"""Masking: which tokens a model has to tell, and what it sees in their place.

Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805): of 15 % of the tokens, 80 % are replaced by the mask,
10 % by random tokens, and 10 % stay. Whole words are chosen, and replaced, as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from pretrain.tasks.examples import sample_generator
from pretrain.tasks.masked_lm.config import MaskingSection
from pretrain.tasks.masked_lm.vocabulary import MaskingVocabulary


@dataclass(frozen=True)
class MaskedTokens:
    input_ids: np.ndarray
    """(n,) int64: what the model sees."""
    positions: np.ndarray
    """(k,) int64, ascending: of the tokens it has to tell."""
    targets: np.ndarray
    """(k,) int64: these tokens."""


class Masker:
    """Masks texts by `settings`. What is masked is a function of (seed, sample), or of (seed, tokens) if static."""

    def __init__(self, settings: MaskingSection, vocabulary: MaskingVocabulary, seed: int) -> None:
        self._settings, self._vocabulary, self._seed = settings, vocabulary, seed
        self._replacements = np.flatnonzero(vocabulary.is_text)

    def __call__(self, tokens: np.ndarray, sample: int) -> MaskedTokens:
        """`tokens` (n,) int64, without padding, of global sample number `sample`."""
        settings, vocabulary = self._settings, self._vocabulary
        if settings.static:
            sample = xxhash.xxh64_intdigest(tokens.astype("<i8").tobytes()) >> 1
        generator = sample_generator(self._seed, sample)
        whole = settings.unit == "whole_word"
        unit = vocabulary.words(tokens) if whole else np.arange(len(tokens))
        chosen, kind = generator.random((2, len(tokens) + 1))[:, unit]
        masked = (chosen < settings.fraction) & vocabulary.is_text[tokens]
        input_ids = tokens.copy()
        input_ids[masked & (kind < settings.mask_share)] = vocabulary.mask_id
        random = masked & (kind >= settings.mask_share) & (kind < settings.mask_share + settings.random_share)
        input_ids[random] = generator.choice(self._replacements, random.sum())
        positions = np.flatnonzero(masked)
        return MaskedTokens(input_ids, positions, tokens[positions])
