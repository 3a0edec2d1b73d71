import torch

from perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.corpus import Batch
from pretrain.tasks.causal_lm.objective import CausalLM

CONTEXT, LATENTS = 24, 8


def batch(ids, targets, segments=None):
    return Batch(input_ids=ids, targets=targets, key_valid=None, segments=segments, indices=torch.arange(len(ids)))


def test_a_packed_batch_costs_what_its_documents_cost_alone():
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=30, max_seq_len=CONTEXT, max_latents=LATENTS, num_channels=32, num_heads=4, num_layers=2
    )
    task = CausalLM(PerceiverAR(config).double(), seed=0).eval()
    ids, targets = torch.randint(30, (1, CONTEXT)), torch.randint(30, (1, LATENTS))
    segments = torch.tensor([[0] * 20 + [1] * 4], dtype=torch.int32)
    packed = task(batch(ids, targets, segments))
    alone = task(batch(ids[:, :20], targets[:, :4])), task(batch(ids[:, 20:], targets[:, 4:]))
    torch.testing.assert_close(packed.losses, torch.cat([output.losses for output in alone], 1))
    torch.testing.assert_close(packed.loss_sum, sum(output.loss_sum for output in alone))
    assert not torch.allclose(packed.losses, task(batch(ids, targets)).losses)
