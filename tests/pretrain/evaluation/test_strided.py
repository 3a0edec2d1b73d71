import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.corpus import Batch, TokenStream
from pretrain.corpus.manifest import SplitEntry
from pretrain.corpus.writing.shards import ShardWriter
from pretrain.evaluation import EvaluationResult, evaluate_stream, spread_evenly
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.tasks.task import TaskOutput

CONTEXT, LATENTS, PREFIX = 20, 8, 12
TOKENS = 101
Evaluate = Callable[..., EvaluationResult]


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 30, TOKENS)


@pytest.fixture(scope="module")
def stream(tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    folder = tmp_path_factory.mktemp("stream")
    writer = ShardWriter(folder, "validation", "uint16", shard_tokens=64)
    writer.add("document", tokens, text_bytes=TOKENS)
    split = SplitEntry(tokens=TOKENS, bytes=TOKENS, documents=1, shards=writer.close(), baselines=None)
    return TokenStream(folder, split, "uint16", shard_tokens=64)


@pytest.fixture(scope="module")
def model() -> PerceiverAR:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=30,
        max_seq_len=CONTEXT,
        max_latents=LATENTS,
        num_channels=16,
        num_heads=2,
        num_layers=2,
        init_scale=0.4,
    )
    return PerceiverAR(config).double().eval()


@pytest.fixture(scope="module")
def score(model: PerceiverAR) -> CausalLM:
    return CausalLM(model, seed=0).eval()


@pytest.fixture
def evaluate(score: CausalLM, stream: TokenStream) -> Evaluate:
    def evaluate(**options: object) -> EvaluationResult:
        defaults = dict(
            context=CONTEXT, latents=LATENTS, stride=LATENTS, batch=4, tokens_per_byte=1.0, device=torch.device("cpu")
        )
        return evaluate_stream(score, stream, **{**defaults, **options})

    return evaluate


def nll_of_window(model: PerceiverAR, tokens: np.ndarray, window: int, stride: int, reach: int) -> Tensor:
    """Nats of the targets of one window from logits alone, without padding or batches."""
    last = min((window + 1) * stride, len(tokens) - 1)
    first = window * stride + 1
    latents_start = max(0, last - LATENTS)
    start = max(0, latents_start - reach)
    ids = torch.from_numpy(tokens[start:last])[None]
    log_p = model(ids, latents_start - start).logits[0].log_softmax(-1)
    return torch.stack([-log_p[t - 1 - latents_start, tokens[t]] for t in range(first, last + 1)])


@pytest.mark.parametrize("stride", [LATENTS, 5, 1])
@pytest.mark.parametrize("reach", [None, 0, 5, 12])
def test_every_token_is_scored_once_as_its_window_alone_scores_it(
    model: PerceiverAR, tokens: np.ndarray, evaluate: Evaluate, stride: int, reach: int | None
) -> None:
    windows = range(-(-(TOKENS - 1) // stride))
    visible = PREFIX if reach is None else reach
    with torch.no_grad():
        expected = torch.cat([nll_of_window(model, tokens, w, stride, visible) for w in windows])

    result = evaluate(stride=stride, reach=reach)

    assert result.tokens == len(expected) == TOKENS - 1
    assert result.nll_sum == pytest.approx(expected.sum().item(), rel=1e-6)  # per-token losses are kept in fp32


def test_with_segments_every_document_is_scored_as_if_it_were_alone(
    model: PerceiverAR, score: CausalLM, tokens: np.ndarray, tmp_path: Path
) -> None:
    ends = [1, 30, 33, 34, 70, TOKENS]
    writer = ShardWriter(tmp_path, "validation", "uint16", shard_tokens=40)
    for document in np.split(tokens, ends[:-1]):
        writer.add("document", document, text_bytes=len(document))
    split = SplitEntry(tokens=TOKENS, bytes=TOKENS, documents=len(ends), shards=writer.close(), baselines=None)
    options = dict(context=CONTEXT, latents=LATENTS, stride=LATENTS, batch=4, tokens_per_byte=1.0)
    stream = TokenStream(tmp_path, split, "uint16", 40)
    result = evaluate_stream(score, stream, **options, device=torch.device("cpu"), segments=True)

    expected = 0.0
    for last in [*range(LATENTS, TOKENS - 1, LATENTS), TOKENS - 1]:
        targets = range((last - 1) // LATENTS * LATENTS + 1, last + 1)
        latents_start, window_start = max(0, last - LATENTS), max(0, last - CONTEXT)
        for begin, end in pairwise([0, *ends]):
            start, stop = max(begin, window_start), min(end, last)
            own = [target for target in targets if max(start, latents_start) < target <= stop]
            if own:
                ids, prefix = torch.from_numpy(tokens[start:stop])[None], max(0, latents_start - start)
                with torch.no_grad():
                    log_p = model(ids, prefix).logits[0].log_softmax(-1)
                expected -= sum(log_p[t - 1 - start - prefix, tokens[t]].item() for t in own)
    assert result.tokens == TOKENS - 1
    assert result.nll_sum == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_results_do_not_depend_on_the_batch_size(evaluate: Evaluate, batch: int) -> None:
    result, other = evaluate(batch=batch), evaluate(batch=4)
    torch.testing.assert_close(result.nll, other.nll, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.counts, other.counts, rtol=0, atol=0)


@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_ranks_add_up_and_call_the_model_equally_often(
    score: CausalLM, stream: TokenStream, evaluate: Evaluate, world_size: int
) -> None:
    calls = [0] * world_size
    results = []
    for rank in range(world_size):

        def counting(batch: Batch, rank: int = rank) -> TaskOutput:
            calls[rank] += 1
            return score(batch)

        results.append(
            evaluate_stream(
                counting,
                stream,
                context=CONTEXT,
                latents=LATENTS,
                stride=LATENTS,
                batch=2,
                tokens_per_byte=1.0,
                device=torch.device("cpu"),
                rank=rank,
                world_size=world_size,
            )
        )

    whole = evaluate()
    assert len(set(calls)) == 1
    torch.testing.assert_close(sum(r.nll for r in results), whole.nll, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(r.correct for r in results), whole.correct, rtol=0, atol=0)
    assert sum(r.tokens for r in results) == whole.tokens == TOKENS - 1


def test_numbers_follow_from_the_sums() -> None:
    nll, counts = torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    nll[3], counts[3] = 6 * math.log(2), 3
    nll[5], counts[5] = 2 * math.log(2), 1
    result = EvaluationResult(nll, counts, counts / 2, seconds=2.0, tokens_per_byte=0.25)
    assert result.accuracy == 0.5
    assert (result.tokens, result.tokens_per_second) == (4, 2.0)
    assert result.loss == pytest.approx(2 * math.log(2))
    assert result.perplexity == pytest.approx(4)
    assert result.bits_per_byte == pytest.approx(0.5)
    assert result.loss_by_position[3:6] == pytest.approx([2 * math.log(2), None, 2 * math.log(2)])
    assert replace(result, nll=nll * 1e4).perplexity == math.inf


def test_loss_by_position_tells_latents_apart(evaluate: Evaluate) -> None:
    result = evaluate(stride=2)
    scored = [position for position, loss in enumerate(result.loss_by_position) if loss is not None]
    # 8 latents fill every second bucket; the last two are scored, and the first window has no others.
    assert scored == [12, 14]
    assert result.counts[[12, 14]].tolist() == [50, 50]


def test_accuracy_counts_the_tokens_that_are_likeliest(
    model: PerceiverAR, tokens: np.ndarray, evaluate: Evaluate
) -> None:
    right = 0
    for last in [*range(LATENTS, TOKENS - 1, LATENTS), TOKENS - 1]:
        start, latents_start = max(0, last - CONTEXT), max(0, last - LATENTS)
        with torch.no_grad():
            likeliest = model(torch.from_numpy(tokens[start:last])[None], latents_start - start).logits[0].argmax(-1)
        first = (last - 1) // LATENTS * LATENTS + 1
        right += int((likeliest.numpy()[first - 1 - latents_start :] == tokens[first : last + 1]).sum())
    assert 0 < right < TOKENS - 1
    assert evaluate().accuracy == pytest.approx(right / (TOKENS - 1))


def test_samples_are_spread_over_the_split() -> None:
    assert spread_evenly(10, None) == spread_evenly(10, 10) == spread_evenly(10, 99) == list(range(10))
    assert spread_evenly(100, 4) == [12, 37, 62, 87]
    assert spread_evenly(7, 1) == [3]


def test_a_sample_scores_its_windows_and_reports_progress(
    model: PerceiverAR, tokens: np.ndarray, evaluate: Evaluate
) -> None:
    seen: list[int] = []
    result = evaluate(max_windows=3, batch=2, progress=seen.append)
    with torch.no_grad():
        expected = torch.cat([nll_of_window(model, tokens, w, LATENTS, PREFIX) for w in spread_evenly(13, 3)])
    assert result.tokens == len(expected)
    assert result.nll_sum == pytest.approx(expected.sum().item(), rel=1e-6)
    assert seen == [2, 1]
