"""The schema of `data.stream`: a data set to train on without preparing it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from pretrain.corpus.sources.dataset import TextDataset
from pretrain.errors import InputError


class StreamConfig(TextDataset):
    """Text that `datasets` streams, a document a row, tokenized and packed as it arrives."""

    where: ClassVar[str] = "data.stream."
    tokenizer: str = "bytes"
    """`bytes`, a tokenizer's file or folder, or its name on the Hugging Face Hub."""
    end_token: Annotated[str, Field(min_length=1)] | None = None
    """The token after every document; by default the tokenizer's usual one. Not for `bytes`."""
    streams: PositiveInt = 8
    """Virtual streams the data set is dealt to, whatever the number of ranks: the ranks must divide it, and it must
    divide `train.global_batch`. Each holds a file open and some megabytes of text in memory. A data set of fewer files
    is read several times over."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Share of the documents, chosen by the hash of their text, that is never trained on."""
    validation_bytes: PositiveInt = 2_000_000
    """Text for validation: the first held-out documents of at least so many bytes."""

    def check_division(self, global_batch: int, world_size: int) -> None:
        """Raises InputError where ranks would not have as many streams each, or streams not as many rows."""
        problems = []
        if self.streams % world_size:
            problems.append(f"{self.streams} must be a multiple of the number of ranks ({world_size})")
        if global_batch % self.streams:
            problems.append(
                f"{self.streams} must divide train.global_batch ({global_batch}): "
                "every stream fills the same number of its rows"
            )
        if problems:
            raise InputError("; ".join(f"data.stream.streams: {problem}" for problem in problems))
