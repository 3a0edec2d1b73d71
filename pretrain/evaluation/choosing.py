"""Which texts a model is evaluated on, and whether it reads them with the tokenizer it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from pretrain.corpus import Corpus, Tokenizer, open_corpus
from pretrain.corpus.config import CacheSection
from pretrain.corpus.tokenizers import BYTES, load_tokenizer
from pretrain.corpus.tokenizers.huggingface import HuggingFaceTokenizer
from pretrain.data import shard_cache
from pretrain.errors import InputError
from pretrain.evaluation.texts import Text, corpus_text, files_text
from pretrain.exported_model import ExportedModel
from pretrain.trained_model import TrainedModel

COMPARED_TOKENS = 1 << 14
"""So much of a corpus two tokenizers must make the same tokens of, to be taken for the same."""


def choose_texts(
    model: TrainedModel | ExportedModel, data: Sequence[str] | None, split: str, scratch: Path
) -> dict[str, Text]:
    """The texts of `data` by name, or those that a run was trained on: folders and URLs are corpora, files are text.

    All files together are one text; `scratch` is an empty folder for its tokens.

    Raises `InputError` where there is no such text, or the model would read it in other tokens than it has learned.
    """
    if data is not None:
        corpora, files = _find(data, model)
    elif isinstance(model, TrainedModel):
        corpora, files = model.corpora(), []
    else:
        raise InputError(
            f"--data: {model.name} comes without text; name prepared corpora or text files, or give --tasks"
        )
    for corpus in corpora.values():
        _check_corpus(corpus, split, model)
    texts = {name: corpus_text(corpus, split) for name, corpus in corpora.items()}
    if texts and _trained_on(model) is None:
        tokenizer = text_tokenizer(model)
        for text in texts.values():
            _check_tokens(text, tokenizer)
    if files:
        text = files_text(files, text_tokenizer(model), scratch)
        texts[_unused_name(text.location, texts)] = text
    return texts


def text_tokenizer(model: TrainedModel | ExportedModel) -> Tokenizer:
    """What turns text into the model's tokens. Raises `InputError` where it is missing."""
    if isinstance(model, TrainedModel):
        if model.state["data"]["tokenizer"] == BYTES:
            return load_tokenizer(BYTES)
        return next(iter(model.corpora().values())).tokenizer()
    fast = model.tokenizer().backend_tokenizer
    return HuggingFaceTokenizer(tokenizers.Tokenizer.from_str(fast.to_str()), model.name, model.end_id)


def _find(data: Sequence[str], model: TrainedModel | ExportedModel) -> tuple[dict[str, Corpus], list[Path]]:
    files = [Path(location) for location in data if Path(location).is_file()]
    folders = [location for location in data if not Path(location).is_file()]
    for location in folders:
        if "://" not in location and not Path(location).is_dir():
            raise InputError(f"--data: {location} does not exist; name prepared corpora or text files")
    settings = model.config.data.cache if isinstance(model, TrainedModel) else CacheSection()
    cache = shard_cache(settings, *folders)
    corpora: dict[str, Corpus] = {}
    for location in folders:
        corpora[_unused_name(location, corpora)] = open_corpus(location, cache)
    return corpora, files


def _unused_name(location: str, used: dict[str, Any]) -> str:
    """The last part of a path; all of it where another text has that name."""
    last = location.rstrip("/").rpartition("/")[2]
    return location if last in used else last


def _trained_on(model: TrainedModel | ExportedModel) -> dict[str, Any] | None:
    """What is known of the tokenizer of the model's training."""
    return model.state["data"] if isinstance(model, TrainedModel) else model.training


def _check_corpus(corpus: Corpus, split: str, model: TrainedModel | ExportedModel) -> None:
    manifest, known = corpus.manifest, _trained_on(model)
    if known is not None and known["tokenizer_hash"] != manifest.tokenizer_hash:
        raise InputError(
            f"{corpus.location}: prepared with tokenizer {manifest.tokenizer} ({manifest.tokenizer_hash}); the model "
            f"needs {known['tokenizer']} ({known['tokenizer_hash']})"
        )
    if split not in manifest.splits:
        raise InputError(f"--split: {corpus.location} has no {split} text, only {', '.join(manifest.splits)}")


def _check_tokens(text: Text, tokenizer: Tokenizer) -> None:
    """Of a model that does not tell what tokenizer it was trained with: compare what it makes of the text."""
    documents = text.documents(min(len(text.stream), COMPARED_TOKENS))
    for document in documents:
        if not np.array_equal(tokenizer.encode(document), text.tokenizer.encode(document)):
            raise InputError(
                f"{text.location}: prepared with tokenizer {text.tokenizer.name}, which makes other tokens of its text "
                f"than that of {tokenizer.name}; prepare it with the model's"
            )
    if tokenizer.end_id != text.tokenizer.end_id:
        raise InputError(
            f"{text.location}: documents end with token {text.tokenizer.end_id}, those of {tokenizer.name} with "
            f"{tokenizer.end_id}"
        )
