"""What a trained Perceiver AR is published with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pretrain.corpus_release import CorpusRelease
from pretrain.evaluation.results import TEXT_METRICS
from pretrain.tasks.causal_lm.config import CausalLMConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

generator = pipeline("text-generation", model="{loaded_as}")
print(generator("def main(", max_new_tokens=200)[0]["generated_text"])
```

Texts of any length can be continued; the model reads the last {context:,} tokens. `num_latents` sets how many tokens at
the end of the prompt go through the whole stack (1 to {latents:,}), and `latent_policy="refresh"` recomputes them when
all are in use instead of letting the oldest go."""


class CausalLMRelease(CorpusRelease):
    pipeline_tag = kind = "text-generation"
    tags = ("perceiver-ar", "long-context")

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverARForCausalLM

        return PerceiverARForCausalLM

    def hf_config(self) -> PreTrainedConfig:
        from perceiver_ar.hf import PerceiverARHFConfig

        return PerceiverARHFConfig(**asdict(self.architecture))

    def processors(self) -> list[Any]:
        return [self.fast_tokenizer()]

    def generation_config(self) -> GenerationConfig:
        from transformers import GenerationConfig

        # A document begins behind the end of another: that is what the model has seen before every first token.
        end = self.trained.state["data"]["end_id"]
        return GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)

    def training_record(self) -> dict[str, Any]:
        config = self.trained.config
        assert isinstance(config, CausalLMConfig)
        return super().training_record() | {"within_documents": config.data.within_documents}

    def validated(self) -> dict[str, Any]:
        state = self.trained.state
        if (validation := state["validation"]) is None:
            return {"corpora": {}, "tasks": {}}
        known = {key: value for key, value in validation.items() if key in ("loss", *TEXT_METRICS)}
        return {"corpora": {" and ".join(state["data"]["fingerprints"]): known}, "tasks": {}}

    def introduction(self) -> str:
        model = self.architecture
        return (
            f"A [Perceiver AR](https://arxiv.org/abs/2202.07765) language model with {self.num_parameters():,} "
            f"parameters: the last {model.max_latents:,} tokens, the latents, read a context of {model.max_seq_len:,} "
            "tokens once and then only each other, so that context is cheap."
        )

    def usage(self, loaded_as: str) -> str:
        return USAGE.format(
            loaded_as=loaded_as, context=self.architecture.max_seq_len, latents=self.architecture.max_latents
        )
