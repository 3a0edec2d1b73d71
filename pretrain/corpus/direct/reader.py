"""Batches straight from a data set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash

from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.direct.virtual_stream import Documents, VirtualStream, deal
from pretrain.corpus.reader import StepBatch, StepReader, cut_micro_batches
from pretrain.corpus.samples import rows_of_rank
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.errors import InputError

OPENED_AT_ONCE = 16
"""Virtual streams that look for their first documents at the same time."""


class DirectReader(StepReader):
    """One rank's batches of steps `start_step` to `stop_step` - 1, in order, once.

    Row r of every step belongs to virtual stream r * streams // global_batch; a stream's consecutive windows fill its
    rows in order. Which document is where depends on the number of streams alone, never on ranks.

    Args:
        states: `StepBatch.state` of all ranks, joined, at the step before `start_step`; None begins at the beginning.

    Raises:
        InputError: streams, ranks and batches do not divide, the data set cannot be opened, or `states` were taken
            from other data.
    """

    def __init__(
        self,
        config: StreamConfig,
        tokenizer: Tokenizer,
        *,
        context: int,
        latents: int,
        segments: bool,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        start_step: int,
        stop_step: int,
        read_ahead: int,
        states: dict[str, Any] | None,
    ):
        config.check_division(global_batch, world_size)
        self._rows = rows_of_rank(global_batch, micro_batch, rank, world_size)
        self._stop = threading.Event()
        text = StreamedText(config, self._stop)
        self.reads_per_file = -(-config.streams // text.files)
        """How often an epoch reads each file, since streams that share one read it each for themselves."""
        self._fingerprint = _fingerprint(config, text, tokenizer, context, latents)
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        per_rank = config.streams // world_size
        self._streams: dict[str, VirtualStream] = {}
        for number in range(rank * per_rank, (rank + 1) * per_rank):
            documents = Documents(text, deal(text.files, config.streams, number), tokenizer, config.validation_fraction)
            state = None if states is None else self._checked(states, number)
            stream = VirtualStream(documents, context=context, latents=latents, segments=segments, state=state)
            self._streams[str(number)] = stream
        self._rows_per_stream = global_batch // config.streams
        super().__init__(self._read(start_step, stop_step), read_ahead)

    def close(self) -> None:
        self._stop.set()
        super().close()
        self._streams.clear()  # closes their files now: left to the interpreter's exit, pyarrow complains

    def _read(self, start_step: int, stop_step: int) -> Iterator[StepBatch]:
        streams = self._streams.values()
        # The first windows wait for connections, and after a resume for files read up to where they were left.
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            list(pool.map(VirtualStream.read_next, streams))
        for step in range(start_step, stop_step):
            windows = [stream.next_window() for stream in streams for _ in range(self._rows_per_stream)]
            states = {name: {**stream.state(), "data": self._fingerprint} for name, stream in self._streams.items()}
            samples = step * self._global_batch + self._rows
            yield StepBatch(step, cut_micro_batches(windows, samples, self._micro_batch), state=states)

    def _checked(self, states: dict[str, Any], number: int) -> dict[str, Any]:
        state: dict[str, Any] | None = states.get(str(number))
        if state is None or state["data"] != self._fingerprint:
            raise InputError(
                "data.stream: the run to resume was trained on other files, or on these with another field, "
                "tokenizer, number of streams, validation_fraction, context or number of latents; restore what it had, "
                "or begin a new run"
            )
        return state


def _fingerprint(config: StreamConfig, text: StreamedText, tokenizer: Tokenizer, context: int, latents: int) -> str:
    """Of all that decides which tokens a window holds. Local files may move and be copied, hence not their times."""
    files = (text.names, [] if text.revision else text.sizes())  # a commit is part of its files' names
    settings = (config.field, config.streams, config.validation_fraction, tokenizer.hash, tokenizer.end_id)
    return xxhash.xxh64_hexdigest(repr((files, *settings, context, latents)).encode())
