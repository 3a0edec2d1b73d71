"""A Perceiver AR as lm-eval's harness sees it: text with a continuation -> its log-likelihood, prompt -> an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from rich.console import Console
from torch import Tensor
from transformers import StoppingCriteria

from pretrain.console import Measure, show_progress
from pretrain.corpus import Batch, Tokenizer, stack_windows
from pretrain.corpus.windows import IGNORED, Window, cut_window
from pretrain.evaluation.choosing import text_tokenizer
from pretrain.exported_model import ExportedModel
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.trained_model import TrainedModel

WINDOWS, ANSWERS = Measure("windows", 1), Measure("answers", 1)


class HarnessModel(TemplateLM):
    """Scores as training does: in windows whose last tokens are all latents, each behind all the text before them.

    A continuation longer than `max_latents` takes several windows; of text longer than the context its end is read.
    Documents begin behind an end token. What a request is answered does not depend on the others in its batch.
    """

    def __init__(self, model: TrainedModel | ExportedModel, batch: int, device: torch.device, console: Console) -> None:
        super().__init__()
        self._tokenizer = text_tokenizer(model)
        self._model = model.hf_model().to(device, model.dtype)  # type: ignore[arg-type]
        self._task = CausalLM(self._model.model, seed=0).eval()
        self._config, self._batch, self._device = model.architecture, batch, device
        self._console = console

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.end_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._tokenizer.encode(string).tolist()

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each a document: every token but the end token before it is scored once."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        return [nats for nats, _ in self._loglikelihood_tokens([("", [self.eot_token_id], text) for text in texts])]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = [(0.0, True) for _ in requests]
        windows = [
            (number, tokens, trained)
            for number, (_, context, continuation) in enumerate(requests)
            for tokens, trained in self._windows(context, continuation)
        ]
        windows.sort(key=lambda window: -len(window[1]))  # those of one batch are padded to its longest
        with show_progress(self._console, "likelihoods", len(windows), WINDOWS) as advance:
            for start in range(0, len(windows), self._batch):
                batch = windows[start : start + self._batch]
                for (number, *_), nats, greedy in zip(batch, *self._score(batch), strict=True):
                    total, all_greedy = scores[number]
                    scores[number] = total - nats, all_greedy and greedy
                advance(len(batch))
        return scores

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[tuple[np.ndarray, int]]:
        """Runs of tokens, each with the number of tokens at its end to score: those of the continuation, all once."""
        begun = context if context[:1] == [self.eot_token_id] else [self.eot_token_id, *context]
        tokens = np.array([*begun, *continuation], dtype=np.int64)
        latents = self._config.max_latents
        for first in range(len(tokens) - len(continuation), len(tokens), latents):
            stop = min(first + latents, len(tokens))
            yield tokens[max(0, stop - 1 - self._config.max_seq_len) : stop], stop - first

    def _score(self, windows: Sequence[tuple[int, np.ndarray, int]]) -> tuple[list[float], list[bool]]:
        """Of each window, the nats of its targets, and whether they are all the likeliest tokens."""
        context = max(len(tokens) for _, tokens, _ in windows) - 1
        latents = min(self._config.max_latents, context)
        cut = [cut_window(tokens, None, trained, context=context, latents=latents) for _, tokens, trained in windows]
        batch = _as_batch(cut).to(self._device)
        with torch.no_grad():
            output = self._task(batch)
        right = (output.measures["accuracy"] | (batch.targets == IGNORED)).all(1)
        return output.losses.sum(1, dtype=torch.float64).tolist(), right.tolist()

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each prompt, up to the first of the strings that end an answer.

        The answer has room in the context, half of it at most: of a prompt that leaves too little, its end is read.
        """
        answers = [""] * len(requests)
        with show_progress(self._console, "answers", len(requests), ANSWERS) as advance:
            for numbers, answered in self._answers(requests):
                for number, answer in zip(numbers, answered, strict=True):
                    answers[number] = answer
                advance(len(numbers))
        return answers

    def _answers(self, requests: Sequence[Instance]) -> Iterator[tuple[list[int], list[str]]]:
        """Numbers of requests and their answers, batch by batch."""
        for numbers, options in self._alike(requests):
            most = min(options.pop("max_gen_toks"), self._config.max_seq_len // 2)
            until = [string for string in options.pop("until") if string]
            prompts = [self._prompt(requests[number].args[0], most) for number in numbers]
            for start in range(0, len(prompts), self._batch):
                rows = self._generate(prompts[start : start + self._batch], most, until, options)
                answers = [_before(self._tokenizer.decode(ids), until) for ids in rows]
                yield numbers[start : start + self._batch], answers

    def _alike(self, requests: Sequence[Instance]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of the requests that go by the same options; prompts of a length are neighbours."""
        options = [normalize_gen_kwargs(dict(request.args[1])) for request in requests]
        order = sorted(range(len(requests)), key=lambda number: (str(options[number]), -len(requests[number].args[0])))
        groups: dict[str, list[int]] = {}
        for number in order:
            groups.setdefault(str(options[number]), []).append(number)
        for numbers in groups.values():
            yield numbers, options[numbers[0]]

    def _prompt(self, text: str, room: int) -> list[int]:
        return [self.eot_token_id, *self.tok_encode(text)][-(self._config.max_seq_len - room) :]

    def _generate(
        self, prompts: Sequence[list[int]], most: int, until: Sequence[str], options: dict[str, Any]
    ) -> list[list[int]]:
        """The ids that follow each of the prompts, up to the end of its answer."""
        length = max(map(len, prompts))
        padded = [[self.eot_token_id] * (length - len(prompt)) + prompt for prompt in prompts]
        read = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        if not options["do_sample"]:
            options = {"do_sample": False}
        ids = self._model.generate(
            torch.tensor(padded, device=self._device),
            attention_mask=torch.tensor(read, device=self._device),
            max_new_tokens=most,
            eos_token_id=self.eot_token_id,
            pad_token_id=self.eot_token_id,
            stopping_criteria=[_Answered(self._tokenizer, until, length)],
            **options,
        )
        return [_before_end(row, self.eot_token_id) for row in ids[:, length:].tolist()]


@dataclass
class _Answered(StoppingCriteria):
    """Ends each row where its answer has one of the strings in it."""

    tokenizer: Tokenizer
    until: Sequence[str]
    prompt_length: int

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = [self.tokenizer.decode(row) for row in input_ids[:, self.prompt_length :].cpu().numpy()]
        ended = [any(string in text for string in self.until) for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def _as_batch(windows: Sequence[Window]) -> Batch:
    return Batch(*stack_windows(windows), indices=torch.zeros(len(windows), dtype=torch.int64))


def _before(text: str, until: Sequence[str]) -> str:
    for string in until:
        text = text.split(string)[0]
    return text


def _before_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
