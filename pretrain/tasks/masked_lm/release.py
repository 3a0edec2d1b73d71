"""What a trained masked language model is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.corpus_release import CorpusRelease
from pretrain.release import PERCEIVER_IO
from pretrain.tasks.masked_lm.config import MaskedLMRunConfig
from pretrain.tasks.masked_lm.vocabulary import find_mask_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

fill = pipeline("fill-mask", model="{loaded_as}")
print(fill(f"Once upon a ti{{fill.tokenizer.mask_token}}e"))
```

A mask stands for one token. The model reads texts of up to {context:,} tokens."""


class MaskedLMRelease(CorpusRelease):
    pipeline_tag = kind = "fill-mask"

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverIOForMaskedLM

        return PerceiverIOForMaskedLM

    def processors(self) -> list[Any]:
        from perceiver_ar.hf import encoder_tokenizer

        config = self.trained.config
        assert isinstance(config, MaskedLMRunConfig)
        return [encoder_tokenizer(self.fast_tokenizer(), find_mask_id(self.tokenizer(), config.masking.mask_id))]

    def introduction(self) -> str:
        model = self.architecture
        return (
            f"A {PERCEIVER_IO} masked language model with {self.num_parameters():,} parameters: "
            f"{model.encoder.num_latents:,} latents read a text of up to {model.max_seq_len:,} tokens, and a learned "
            "query for each position asks them for the token there."
        )

    def usage(self, loaded_as: str) -> str:
        return USAGE.format(loaded_as=loaded_as, context=self.architecture.max_seq_len)
