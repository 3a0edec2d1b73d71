"""The corpora that a run was trained on, opened again."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.corpus import Corpus, open_corpus
from pretrain.corpus.config import CorpusRunConfig
from pretrain.data import open_corpora, shard_cache
from pretrain.errors import InputError
from pretrain.trained_run import TrainedRun


def trained_corpora(trained: TrainedRun, moved_to: Sequence[str] | None = None) -> dict[str, Corpus]:
    """By name, at other places than the run had them if `moved_to` names these in order.

    Raises `InputError` where one is gone, damaged or has changed since.
    """
    config = trained.config
    assert isinstance(config, CorpusRunConfig)
    trained_on = trained.state["data"]["fingerprints"]
    if moved_to is None:
        corpora = open_corpora(config)
    elif len(moved_to) == len(trained_on):
        cache = shard_cache(config.data.cache, *moved_to)
        corpora = {name: open_corpus(place, cache) for name, place in zip(trained_on, moved_to, strict=True)}
    else:
        raise InputError(f"--data: {len(moved_to)} corpora, the run has {len(trained_on)}: {', '.join(trained_on)}")
    for name, corpus in corpora.items():
        if corpus.manifest.fingerprint != trained_on[name]:
            raise InputError(f"{corpus.location}: not the corpus {name} that {trained.checkpoint} was trained on")
    return corpora
