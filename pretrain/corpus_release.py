"""What models trained on token corpora are published with: the corpora's tokenizer and what is known of their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pretrain.corpus import Corpus
from pretrain.corpus.tokenizers import BYTES, Tokenizer, load_tokenizer
from pretrain.errors import InputError
from pretrain.markdown import markdown_table
from pretrain.release import Release
from pretrain.trained_corpora import trained_corpora
from pretrain.trained_run import TrainedRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CorpusRelease(Release):
    rows = "sequences"

    def __init__(self, trained: TrainedRun, data: Sequence[str] | None = None) -> None:
        self.trained = trained
        self._moved_to = data

    def check(self) -> None:
        _ = self.corpora

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """By name. Raises `InputError` where one is gone, damaged or has changed since."""
        return trained_corpora(self.trained, self._moved_to)

    def tokenizer(self) -> Tokenizer:
        """What the model was trained with."""
        if self.trained.state["data"]["tokenizer"] == BYTES:
            return load_tokenizer(BYTES)
        return next(iter(self.corpora.values())).tokenizer()

    def fast_tokenizer(self) -> PreTrainedTokenizerFast:
        return fast_tokenizer(self.tokenizer(), self.architecture.max_seq_len)

    def origin(self) -> str:
        return " and ".join(self.trained.state["data"]["fingerprints"])

    def data(self) -> str:
        return "\n\n".join(_describe(name, corpus) for name, corpus in self.corpora.items())


def fast_tokenizer(tokenizer: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    """The fast tokenizer with the same ids, for a model that reads `context` tokens.

    Raises `InputError` where there is no exact one.
    """
    from perceiver_ar.hf.tokenization import byte_tokenizer, saved_tokenizer, sentencepiece_tokenizer

    if tokenizer.name == BYTES:
        return byte_tokenizer(context)
    [(name, content)] = tokenizer.files.items()
    with TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        if file.suffix == ".json":
            return saved_tokenizer(file, tokenizer.end_id, context)
        try:
            return sentencepiece_tokenizer(file, tokenizer.end_id, context)
        except ValueError as error:
            raise InputError(f"{tokenizer.name}: has no fast tokenizer with the same ids: {error}") from error


def _describe(name: str, corpus: Corpus) -> str:
    manifest = corpus.manifest
    sizes = ", ".join(
        f"{name} {split.bytes:,} bytes in {split.documents:,} documents" for name, split in manifest.splits.items()
    )
    sources = [
        (source.kind, source.revision, source.licence, f"{source.documents:,}", f"{source.bytes:,}")
        for source in manifest.sources
    ]
    return (
        f"**{name}**: tokenizer `{manifest.tokenizer}`, {manifest.vocab_size:,} tokens. {sizes[0].upper()}{sizes[1:]}. "
        f"Licence of the text: {manifest.licence}. Fingerprint `{manifest.fingerprint}`.\n\n"
    ) + markdown_table(("source", "revision", "licence", "documents", "bytes"), sources, numbers=2)
