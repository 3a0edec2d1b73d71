"""Multi-head attention against a float64 computation written out head by head."""

import pytest
import torch

from perceiver_ar.blocks.attention import MultiHeadAttention


def by_hand(attention, query_input, kv_input, key_valid=None):
    q, k, v = attention.q_proj(query_input), attention.k_proj(kv_input), attention.v_proj(kv_input)
    n, m = q.shape[1], k.shape[1]
    heads = []
    for qh, kh, vh in zip(*(x.chunk(attention.num_heads, -1) for x in (q, k, v)), strict=True):
        if isinstance(attention.q_norm, torch.nn.RMSNorm):
            qh, kh = attention.q_norm(qh), attention.k_norm(kh)
        scores = qh @ kh.mT / qh.shape[-1] ** 0.5
        allowed = (
            torch.ones(n, m, dtype=torch.bool).tril(m - n) if attention.causal else torch.ones(n, m, dtype=torch.bool)
        )
        if key_valid is not None:
            allowed = allowed & key_valid[:, None]
        heads.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ vh)
    return attention.o_proj(torch.cat(heads, -1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_channels": 8, "v_channels": 24, "output_channels": 10},
        {"qkv_bias": True, "output_bias": True},
        {"qk_norm": True},
        {"max_heads_parallel": 3},
        {"max_heads_parallel": 1, "qk_channels": 16},
    ],
)
def test_equals_attention_written_out(causal, options):
    torch.manual_seed(0)
    attention = MultiHeadAttention(4, 16, 12, causal=causal, **options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    query_input, kv_input = torch.randn(2, 5, 16).double(), torch.randn(2, 9, 12).double()
    key_valid = torch.ones(2, 9, dtype=torch.bool)
    key_valid[1, :3] = False
    for valid in (None, key_valid):
        out = attention(query_input, kv_input, key_valid=valid)
        torch.testing.assert_close(out, by_hand(attention, query_input, kv_input, valid))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    attention = MultiHeadAttention(2, 8, 8, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.allclose(attention(x, x), attention(x, x))
    attention.eval()
    torch.testing.assert_close(attention(x, x), attention(x, x), rtol=0, atol=0)


def test_channels_must_divide_into_heads():
    with pytest.raises(ValueError, match="qk_channels \\(10\\)"):
        MultiHeadAttention(4, 16, 16, qk_channels=10)
