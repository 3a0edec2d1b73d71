"""How good a model is: the loss of text, and tasks that need the whole of a long context."""

from pretrain.evaluation.strided import (
    POSITION_BUCKETS,
    EvaluationResult,
    evaluate_stream,
    evaluate_windows,
    perplexity,
    spread_evenly,
)

__all__ = [
    "POSITION_BUCKETS",
    "EvaluationResult",
    "evaluate_stream",
    "evaluate_windows",
    "perplexity",
    "spread_evenly",
]
