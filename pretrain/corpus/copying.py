"""The copy task of the Perceiver AR paper (https://arxiv.org/abs/2202.07765): random bytes, then the same bytes again.

Sequences are made as they are asked for. Only their second halves are trained and scored: no model can foretell the
first, and one that reads far enough back knows the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import xxhash
from pydantic import AfterValidator, Field

from pretrain.corpus.manifest import FORMAT, VERSION, Manifest, SourceEntry, SplitEntry
from pretrain.corpus.order import order_key
from pretrain.corpus.stream import Corpus, TokenStream
from pretrain.corpus.tokenizers import ByteTokenizer
from pretrain.corpus.windows import Window, WindowKind, Windows, cut_window
from pretrain.errors import InputError
from pretrain.schema import Section

CopyOrder = Literal["mirrored", "repeated"]

COPY = "copy"
"""The name of its corpus."""
TRAINING_SEQUENCES = 1 << 40
"""More than any run reads."""
VALIDATION_TOKENS = 1 << 20
"""About as many as the paper's 12 validation sequences have of 131,072."""


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"must be even, not {value}")
    return value


class CopyTask(Section):
    length: Annotated[int, Field(ge=4), AfterValidator(_even)]
    """Tokens of a sequence: a first half that begins with the end token, as every document does, and its copy."""
    order: CopyOrder = "mirrored"
    """`mirrored` copies from the last byte to the first, as the paper does: which token to read follows from a token's
    place, so the model needs positions of its own (`model.learned_positions`). `repeated` copies from first to last:
    half a sequence back everywhere, which rotary embeddings can tell."""

    @property
    def half(self) -> int:
        """Tokens of a first half, and of its copy."""
        return self.length // 2

    def sequence(self, key: int, number: int) -> np.ndarray:
        """Sequence `number` of those under `key`: (length,) int64."""
        seed = xxhash.xxh64_intdigest(f"copy {number}, key {key}".encode())
        # The words of a bit generator are the same in every version of NumPy; those of `Generator` need not be.
        words = np.random.PCG64(seed).random_raw(-(-(self.half - 1) // 8)).astype("<u8")
        content = words.view(np.uint8)[: self.half - 1].astype(np.int64) + ByteTokenizer.specials
        first = np.concatenate([[ByteTokenizer.end_id], content])
        return np.concatenate([first, first[::-1] if self.order == "mirrored" else first])

    def check_context(self, context: int) -> None:
        """Raises InputError where a model with so much context does not see a whole sequence."""
        if self.length > context + 1:
            raise InputError(
                f"data.copy_task.length: {self.length} tokens need model.max_seq_len of at least {self.length - 1}, "
                f"not {context}"
            )


class CopyCrops:
    """Windows to train on: of each sequence one run of `latents` tokens of the copy, behind all that comes before it.

    Runs begin anywhere, before the copy too, and are cut to it: so every token of it is a target equally often.
    """

    block_windows = 1

    def __init__(self, task: CopyTask, *, context: int, latents: int, key: int) -> None:
        task.check_context(context)
        self.context, self.latents = context, latents
        self._task, self._key = task, key

    def __len__(self) -> int:
        return TRAINING_SEQUENCES

    def window(self, number: int, epoch: int = 0) -> Window:
        task, run = self._task, min(self.latents, self._task.half)
        draw = xxhash.xxh64_intdigest(f"run of {number}, key {self._key}".encode()) % (task.half + run - 1)
        first, stop = task.half - run + 1 + draw, task.half + 1 + draw
        first, stop = max(first, task.half), min(stop, task.length)
        tokens = task.sequence(self._key, number)[:stop]
        return cut_window(tokens, None, stop - first, context=self.context, latents=self.latents)

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        """Nothing is fetched."""


class CopyStrips:
    """Windows to score: of a number of sequences, every token of the copy is a target once, in runs of `latents`."""

    block_windows = 1

    def __init__(self, task: CopyTask, sequences: int, *, context: int, latents: int) -> None:
        task.check_context(context)
        self.context, self.latents = context, latents
        self._task, self._sequences = task, sequences
        self._strips = -(-task.half // latents)

    def __len__(self) -> int:
        return self._sequences * self._strips

    def window(self, number: int, epoch: int = 0) -> Window:
        task = self._task
        sequence, strip = divmod(number, self._strips)
        first = task.half + strip * self.latents
        stop = min(first + self.latents, task.length)
        tokens = task.sequence(VALIDATION_KEY, sequence)[:stop]
        return cut_window(tokens, None, stop - first, context=self.context, latents=self.latents)

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        """Nothing is fetched."""


VALIDATION_KEY = order_key("copy task, validation", seed=0)
"""No run trains under it."""


class CopyCorpus(Corpus):
    """The copy task as a corpus: with a manifest, a tokenizer and windows, but no text at rest."""

    def __init__(self, task: CopyTask) -> None:
        super().__init__("the copy task", Path(), _manifest(task))
        self._task = task

    def split(self, name: str) -> TokenStream:
        """Raises InputError."""
        raise InputError("data.copy_task: has no text to evaluate; give --data, or evaluate it with --tasks copy")

    def training_windows(self, kind: WindowKind, *, context: int, latents: int, key: int, segments: bool) -> Windows:
        return CopyCrops(self._task, context=context, latents=latents, key=key)

    def validation_windows(self, *, context: int, latents: int, segments: bool) -> Windows:
        sequences = self.manifest.splits["validation"].documents
        return CopyStrips(self._task, sequences, context=context, latents=latents)


def _manifest(task: CopyTask) -> Manifest:
    described = f"{task.length} tokens, {task.order}"
    sequences = {"train": TRAINING_SEQUENCES, "validation": max(1, VALIDATION_TOKENS // task.length)}
    source = SourceEntry(
        kind="copy task",
        revision=described,
        licence="none: random bytes",
        files=0,
        documents=sum(sequences.values()),
        duplicates=0,
        bytes=sum(sequences.values()) * task.length,
    )
    return Manifest(
        format=FORMAT,
        version=VERSION,
        tokenizer=ByteTokenizer.name,
        tokenizer_hash=ByteTokenizer.hash,
        vocab_size=ByteTokenizer.vocab_size,
        end_id=ByteTokenizer.end_id,
        dtype="uint16",
        shard_tokens=task.length,
        fingerprint=xxhash.xxh64_hexdigest(f"copy task: {described}".encode()),
        inputs="",
        licence=source.licence,
        sources=[source],
        splits={name: _split(task, count) for name, count in sequences.items()},
        tokenizer_files={},
        config=task.model_dump(),
    )


def _split(task: CopyTask, sequences: int) -> SplitEntry:
    # Every token counts as a byte, so that bits per byte are bits per token.
    tokens = sequences * task.length
    return SplitEntry(tokens=tokens, bytes=tokens, documents=sequences, shards=[], baselines=None)
