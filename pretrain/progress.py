"""How far a run is: what every checkpoint remembers of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint import read_state
from pretrain.corpus import Corpus
from pretrain.errors import InputError


@dataclass
class Progress:
    """What a run has done so far; part of every checkpoint."""

    step: int = 0
    """Completed steps, skipped ones included."""
    trained_tokens: int = 0
    """Targets of the steps that were applied."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    """Wall time in training, over all attempts."""
    interval_nll: float = 0.0
    """Nats since the last logged step, of all ranks."""
    interval_tokens: int = 0
    validation: dict[str, Any] | None = None
    """The last validation's record."""


class Interval:
    """Sums over the steps since the last logged one, on this rank."""

    def __init__(self, device: torch.device, nll: float = 0.0) -> None:
        self.nll = torch.full((), nll, dtype=torch.float64, device=device)
        """Nats. On the device, so that no step waits for it."""
        self.steps = 0
        self.seconds = 0.0
        self.waited = 0.0
        """Seconds of `seconds` spent waiting for data."""

    def took(self, seconds: float, waited: float) -> None:
        self.steps += 1
        self.seconds += waited + seconds
        self.waited += waited


def read_progress(checkpoint: Path, corpus: Corpus) -> Progress:
    """What the run had done when it was saved. Raises InputError where it was trained on other tokens."""
    state = read_state(checkpoint)
    before, now = state["corpus"]["fingerprint"], corpus.manifest.fingerprint
    if before != now:
        raise InputError(
            f"data.corpus: {corpus.folder} is another corpus (fingerprint {now}) than the one {checkpoint} was trained "
            f"on ({before}): give the path of that one, or choose another run.dir"
        )
    return Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})


def describe_corpus(corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint remembers of its corpus."""
    manifest = corpus.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "tokenizer": manifest.tokenizer,
        "tokenizer_hash": manifest.tokenizer_hash,
        "vocab_size": manifest.vocab_size,
        "end_id": manifest.end_id,
    }
