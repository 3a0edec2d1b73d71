"""What a trained text classifier is published with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus_release import fast_tokenizer
from pretrain.release import PERCEIVER_IO, Release
from pretrain.tasks.text_classification.config import TextClassificationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USAGE = """\
```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import pipeline

classify = pipeline("text-classification", model="{loaded_as}")
print(classify("A text of which the model tells the class.", truncation=True))
```

The model reads the first {context:,} tokens of a text."""


class TextClassificationRelease(Release):
    pipeline_tag = kind = "text-classification"

    def hf_class(self) -> type[PreTrainedModel]:
        from perceiver_ar.hf import PerceiverIOForSequenceClassification

        return PerceiverIOForSequenceClassification

    def processors(self) -> list[Any]:
        from perceiver_ar.hf import encoder_tokenizer

        config = self.trained.config
        assert isinstance(config, TextClassificationConfig)
        return [encoder_tokenizer(fast_tokenizer(load_tokenizer(config.data.tokenizer), self.architecture.max_seq_len))]

    def introduction(self) -> str:
        model = self.architecture
        return (
            f"A {PERCEIVER_IO} text classifier with {self.num_parameters():,} parameters: "
            f"{model.encoder.num_latents:,} latents read up to {model.max_seq_len:,} tokens and tell which of "
            f"{model.num_classes:,} classes a text is of{self.named_labels()}."
        )

    def usage(self, loaded_as: str) -> str:
        return USAGE.format(loaded_as=loaded_as, context=self.architecture.max_seq_len)
