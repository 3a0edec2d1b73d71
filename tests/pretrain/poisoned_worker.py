"""One rank of `test_replay.py`: trains or replays a run with a layer that turns one sample into NaN."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from pretrain.config import load_config
from pretrain.tasks.causal_lm import objective

POISONED = 30
"""Global number of the sample: in batches of 4, it belongs to step 8."""


class PoisonedCausalLM(objective.CausalLM):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.model.self_attention[0].mlp.register_forward_hook(self.poison)

    def forward(self, batch: Any) -> Any:
        self.rows = batch.indices == POISONED
        return super().forward(batch)

    def poison(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(self.rows[:, None, None] & self.training, torch.nan)


if __name__ == "__main__":
    objective.CausalLM = PoisonedCausalLM
    command, *arguments = sys.argv[1:]
    if command == "replay":
        from pretrain.replay import main

        main(arguments)
    from pretrain.train import run

    run(load_config(Path(arguments[0])), os.environ.get("RANK", "0") == "0")
