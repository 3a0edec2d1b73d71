import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_ar.blocks.segments import Segments


@st.composite
def packed(draw):
    """Ascending document numbers of a batch, and how many of its last tokens are queries."""
    length = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.integers(-1, 5), min_size=length, max_size=length).map(sorted), min_size=1))
    return torch.tensor(rows), draw(st.integers(1, length))


def spans_by_hand(numbers, num_queries):
    prefix = numbers.shape[1] - num_queries
    spans = []
    for row, documents in enumerate(numbers.tolist()):
        for document in sorted(set(documents)):
            keys = [i for i, other in enumerate(documents) if other == document]
            queries = [i - prefix for i in keys if i >= prefix]
            if queries:
                spans.append((row, slice(queries[0], queries[-1] + 1), slice(keys[0], keys[-1] + 1)))
    return spans


@given(packed())
def test_spans_are_the_documents_that_have_queries(window):
    numbers, num_queries = window
    segments = Segments.of_window(numbers, num_queries)
    assert list(segments.spans()) == spans_by_hand(numbers, num_queries)
    latents = numbers[:, -num_queries:]
    assert list(segments.among_queries().spans()) == spans_by_hand(latents, num_queries)


@given(packed())
def test_bounds_are_cumulative_lengths_over_the_batch(window):
    numbers, num_queries = window
    segments = Segments.of_window(numbers, num_queries)
    assert all(bounds.dtype == torch.int32 for bounds in segments.bounds)
    for bounds, tokens in zip(segments.bounds, (numbers[:, -num_queries:], numbers), strict=True):
        rows = zip(tokens, numbers, strict=True)
        counts = [int((row == document).sum()) for row, whole in rows for document in whole.unique()]
        assert bounds.diff().tolist() == counts and bounds[0] == 0


def test_numbers_that_do_not_ascend_have_no_bounds():
    numbers = torch.tensor([[0, 0, 1, 1], [0, -1, 0, 1]])
    segments = Segments.of_window(numbers, 3)
    assert segments.bounds is None and segments.among_queries().bounds is None
    assert segments.queries.equal(numbers[:, 1:]) and segments.keys.equal(numbers)
