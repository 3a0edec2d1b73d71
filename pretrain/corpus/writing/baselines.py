"""What a model's bits per byte are read against: simple statistics and a general compressor on the same text."""

from __future__ import annotations

import lzma
import threading
from concurrent.futures import Future

import numpy as np

from pretrain.schema import Section

SAMPLE_BYTES = 2 << 20


class Baselines(Section):
    """Bits per byte of a split's text (documents joined, without end tokens)."""

    sample_bytes: int
    """How much of the text was looked at, from its start; documents are shuffled, so the start is a fair sample."""
    order_0: float
    """Empirical entropy of the bytes."""
    order_2: float
    """Empirical entropy of a byte given the two before it. Counts are taken on the very text they score, so no
    order-2 model that has to learn them can reach it; on short texts it is far too low."""
    xz: float
    """Size after `xz -6`."""


def measure_baselines(text: bytes) -> Baselines:
    """Baselines of `text`, which must not be empty; the first `SAMPLE_BYTES` are used, to bound the time."""
    sample = text[:SAMPLE_BYTES]
    return Baselines(
        sample_bytes=len(sample),
        order_0=conditional_entropy(sample, order=0),
        order_2=conditional_entropy(sample, order=2),
        xz=8 * len(lzma.compress(sample, preset=6)) / len(sample),
    )


def start_measuring(text: bytes) -> Future[Baselines]:
    """`measure_baselines` in a thread, which takes seconds, most of them outside of Python."""
    future: Future[Baselines] = Future()

    def measure() -> None:
        try:
            future.set_result(measure_baselines(text))
        except Exception as error:
            future.set_exception(error)

    # Not a pool's thread: on Ctrl-C nobody should have to wait for it.
    threading.Thread(target=measure, daemon=True).start()
    return future


def conditional_entropy(text: bytes, order: int) -> float:
    """Empirical H(x_t | x_{t-1}, ..., x_{t-order}) of the bytes of `text`, in bits; 0 if it is no longer than `order`.

    `order` is at most 6: a byte and its context share one 64-bit code.
    """
    symbols = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    count = len(symbols) - order
    if count <= 0:
        return 0.0
    codes = np.zeros(count, dtype=np.int64)
    for offset in range(order + 1):
        codes = codes << 8 | symbols[offset : offset + count]
    distinct, occurrences = np.unique(codes, return_counts=True)
    _, context = np.unique(distinct >> 8, return_inverse=True)
    context_occurrences = np.bincount(context, weights=occurrences)[context]
    return float(np.sum(occurrences * np.log2(context_occurrences / occurrences)) / count)
