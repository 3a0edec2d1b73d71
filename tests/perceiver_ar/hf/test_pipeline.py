from pathlib import Path

import pytest
from transformers import pipeline

from perceiver_ar.hf import byte_tokenizer
from tests.perceiver_ar.hf.models import CONTEXT, build

PROMPTS = ["Once upon a time, long before", "The", "A prompt that is much longer than the context of the model is"]
OPTIONS = dict(max_new_tokens=40, do_sample=False, suppress_tokens=list(range(6)))


@pytest.mark.parametrize("options", [{}, {"num_latents": 8, "latent_policy": "refresh"}, {"num_beams": 2}])
def test_text_generation_of_a_batch_equals_one_prompt_at_a_time(
    options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_tokenizer(CONTEXT)
    build(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    generator = pipeline("text-generation", str(tmp_path))
    together = generator(PROMPTS[:2], batch_size=2, **OPTIONS, **options)
    longest = generator(PROMPTS[2], **OPTIONS, **options)

    assert "not supported" not in caplog.text
    for prompt, result in zip(PROMPTS, [*together, longest], strict=True):
        text = result[0]["generated_text"]
        assert text.startswith(prompt) and len(text) > len(prompt)
        assert generator(prompt, **OPTIONS, **options)[0]["generated_text"] == text


def test_what_the_tokenizer_returns_is_what_the_model_takes() -> None:
    tokenizer = byte_tokenizer(CONTEXT)
    encoded = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    assert build(vocab_size=len(tokenizer))(**encoded).logits.shape == (2, 8, len(tokenizer))
