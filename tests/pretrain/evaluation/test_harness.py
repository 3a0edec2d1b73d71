"""Tasks of lm-eval, on files of this folder: what they tell must follow from the model alone, row by row."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from lm_eval.api.instance import Instance
from rich.console import Console

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.corpus.tokenizers import ByteTokenizer
from pretrain.errors import InputError, Unavailable
from pretrain.evaluate import main as evaluate_main
from pretrain.evaluation.harness import load_tasks
from pretrain.evaluation.harness_model import HarnessModel
from pretrain.trained_model import TrainedModel
from tests.pretrain.stored_run import store_run, weights_of

ROOT = Path(__file__).parents[3]
CONTEXT, LATENTS = 64, 16
QUESTIONS = [
    # A choice longer than the latents, questions longer than the context, and every length between.
    {"question": "ab" * (9 * i + 1), "choices": ["x", "yz" * 5, "an answer of more than sixteen bytes"], "gold": i % 3}
    for i in range(6)
]
TEXTS = [
    {"text": "The quick brown fox jumps over the lazy dog. " * 5},
    {"text": "short"},
    {"text": "Grüße, " * 7},
]
PROMPTS = [{"prompt": "once upon a time " * (3 * i + 1), "answer": ""} for i in range(3)]
GENERATED = 8
"""Half of the latents: what `generate` has free when it begins."""
TASKS = {
    "choosing": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "writing": f"""
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["STOP"], max_gen_toks: {GENERATED}, do_sample: false}}
metric_list: [{{metric: exact_match}}]
""",
}
EXAMPLES = {"choosing": QUESTIONS, "rolling": TEXTS, "writing": PROMPTS}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return store_run(tmp_path_factory.mktemp("run") / "run", {"corpus": str(corpus)}, init_scale=0.3)


@pytest.fixture(scope="module")
def model(run_dir: Path) -> PerceiverAR:
    return weights_of(run_dir, 20)


@pytest.fixture(scope="module")
def answers(model: PerceiverAR) -> list[str]:
    """What greedy decoding without a cache writes behind each prompt, which leaves the answer room in the context."""
    return [greedily(model, example["prompt"]) for example in PROMPTS]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> Path:
    """A folder of tasks; two of the three answers are expected, one is cut at a string that ends it."""
    folder = tmp_path_factory.mktemp("tasks")
    stop = answers[2][3:5]
    PROMPTS[0]["answer"], PROMPTS[1]["answer"] = _cut(answers[0], stop), "something else"
    PROMPTS[2]["answer"] = _cut(answers[2], stop)
    for name, description in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, EXAMPLES[name])))
        origin = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in (origin | {"test_split": "test"}).items())
        (folder / f"{name}.yaml").write_text(head + description.replace('"STOP"', json.dumps(stop)))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, run_dir: Path, tasks: Path) -> tuple[dict[str, Any], str]:
    """Metrics of the three tasks as evaluation.json has them, and what was printed, errors too."""
    home = str(tmp_path_factory.mktemp("home"))
    offline = {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "pretrain/evaluate.py", "--checkpoint", str(run_dir), "--tasks", ",".join(TASKS)]
    command += ["--include-path", str(tasks), "--batch", "3"]
    found = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    return json.loads((run_dir / "evaluation.json").read_text())["tasks"], found.stdout + found.stderr


def nats(model: PerceiverAR, context: str, continuation: str) -> float:
    """Of the continuation, from the logits of one unpadded window after another."""
    tokenizer = ByteTokenizer()
    ids = [tokenizer.end_id, *tokenizer.encode(context + continuation).tolist()]
    first = len(ids) - len(continuation.encode())
    total = 0.0
    while first < len(ids):
        stop = min(first + LATENTS, len(ids))
        window = torch.tensor([ids[max(0, stop - 1 - CONTEXT) : stop - 1]])
        with torch.no_grad():
            log_p = model(window, max(0, window.shape[1] - LATENTS)).logits[0].log_softmax(-1)
        total -= sum(float(log_p[target - stop, ids[target]]) for target in range(first, stop))
        first = stop
    return total


def greedily(model: PerceiverAR, prompt: str) -> str:
    tokenizer = ByteTokenizer()
    ids = [tokenizer.end_id, *tokenizer.encode(prompt).tolist()][-(CONTEXT - GENERATED) :]
    prefix = max(0, len(ids) - LATENTS // 2)
    for _ in range(GENERATED):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), prefix).logits[0, -1].argmax()))
    return tokenizer.decode(ids[-GENERATED:])


def _cut(text: str, stop: str) -> str:
    return text.split(stop)[0]


def test_choices_are_those_of_the_highest_likelihood(results: tuple[dict[str, Any], str], model: PerceiverAR) -> None:
    chosen = [
        min(range(3), key=lambda i: nats(model, question["question"], question["choices"][i])) for question in QUESTIONS
    ]
    right = [choice == question["gold"] for choice, question in zip(chosen, QUESTIONS, strict=True)]
    assert results[0]["choosing"]["acc"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)


def test_rolling_likelihood_is_that_of_windows_of_all_latents_behind_all_the_text(
    results: tuple[dict[str, Any], str], model: PerceiverAR
) -> None:
    total = sum(nats(model, "", example["text"]) for example in TEXTS)
    size = sum(len(example["text"].encode()) for example in TEXTS)
    assert results[0]["rolling"]["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_answers_are_greedy_and_end_at_the_strings_that_end_them(
    results: tuple[dict[str, Any], str], answers: list[str]
) -> None:
    expected = [example["answer"] for example in PROMPTS]
    assert expected[2] != answers[2]
    assert results[0]["writing"]["exact_match"] == pytest.approx(2 / 3)


def test_results_are_printed(results: tuple[dict[str, Any], str]) -> None:
    assert all(word in results[1] for word in ("choosing", "acc", "bits_per_byte", "exact_match", "±"))
    assert "likelihoods: 3" in results[1] and "answers: 3 of 3 answers" in results[1]


def test_no_bars_but_ours_are_shown(results: tuple[dict[str, Any], str]) -> None:
    assert not any(sign in results[1] for sign in ("it/s]", "examples/s", "Tokenizing", "\r"))


def test_rolling_equals_the_evaluation_of_the_same_text(run_dir: Path, model: PerceiverAR, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "evaluation.json"
    content = TEXTS[0]["text"][: 14 * LATENTS]  # whole windows: only the end token behind it makes one more
    text.write_text(content)
    harness = HarnessModel(TrainedModel.find(run_dir), 2, torch.device("cpu"), Console())
    [likelihood] = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (content,), 0)])
    evaluate = ["--checkpoint", str(run_dir), "--data", str(text), "--reach", "", "--out", str(out)]
    assert evaluate_main(evaluate) == 0
    [of_text] = json.loads(out.read_text())["corpora"].values()
    expected = of_text["loss"] * of_text["tokens"] - end_token_nats(model, content)
    assert -likelihood == pytest.approx(expected, rel=1e-5)


def end_token_nats(model: PerceiverAR, text: str) -> float:
    tokenizer = ByteTokenizer()
    ids = torch.tensor([[tokenizer.end_id, *tokenizer.encode(text).tolist()][-CONTEXT:]])
    with torch.no_grad():
        return -float(model(ids, CONTEXT - LATENTS).logits[0, -1].log_softmax(-1)[tokenizer.end_id])


def test_a_long_answer_leaves_the_prompt_half_of_the_context(run_dir: Path, model: PerceiverAR) -> None:
    harness = HarnessModel(TrainedModel.find(run_dir), 2, torch.device("cpu"), Console())
    prompts = [first + "this much of the prompt is read" for first in ("what is before, ", "or something else ")]
    options = {"until": [], "max_gen_toks": 1000}
    one, other = harness.generate_until([Instance("generate_until", {}, (text, options), 0) for text in prompts])
    assert one == other  # of both, the last half of the context is read
    ids = torch.tensor([ByteTokenizer().encode(prompts[0][-CONTEXT // 2 :]).tolist()])
    with torch.no_grad():
        first = int(model(ids, CONTEXT // 2 - LATENTS // 2).logits[0, -1].argmax())
    assert one.startswith(ByteTokenizer().decode([first]))


def test_a_harness_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"--tasks: lambada need lm-eval .*pip install .\[eval\]"):
        load_tasks(["lambada"], None)


def test_without_a_network_a_task_of_the_hub_is_unavailable_at_once(run_dir: Path, tmp_path: Path) -> None:
    origin = {"task": "remote", "dataset_path": "me/data", "test_split": "test"}
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in origin.items())
    (tmp_path / "remote.yaml").write_text(head + TASKS["rolling"])
    nowhere = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = f"""
import sys, time
from pathlib import Path
import lm_eval.tasks
from pretrain.errors import run_command
from pretrain.evaluation.harness import load_tasks
sys.argv[1:] = ["remote"]
began = time.monotonic()
try:
    run_command(lambda names: load_tasks(names, Path({str(tmp_path)!r})) and 0)
finally:
    print(time.monotonic() - began)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=200
    )
    assert found.returncode == Unavailable.code == 1, found.stderr
    assert found.stderr.startswith("error: --tasks: remote cannot be loaded: Couldn't reach 'me/data'")
    assert len(found.stderr.splitlines()) == 1
    assert float(found.stdout) < 10


@pytest.mark.slow
def test_unknown_tasks_are_named(tasks: Path) -> None:
    with pytest.raises(InputError, match="--tasks: lm-eval has no task chosing"):
        load_tasks(["choosing", "chosing"], tasks)


def test_tasks_that_cannot_be_loaded_are_named_before_any_is_run(run_dir: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    description = (tasks / "rolling.yaml").read_text()
    for name, old, new in [("lost", ".jsonl", ".gone"), ("odd", "likelihood_rolling", "likelihood_falling")]:
        (tmp_path / f"{name}.yaml").write_text(description.replace('"rolling"', name).replace(old, new))
        with pytest.raises(InputError, match=f"--tasks: {name} cannot be loaded: "):
            evaluate_tasks(run_dir, f"copy,{name}", tmp_path, out)
    assert not out.exists()
    assert not constants.HF_HUB_OFFLINE  # whatever else this process does may need the Hub


def test_what_was_measured_before_a_task_fails_is_kept(
    run_dir: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.json"
    monkeypatch.setattr(HarnessModel, "generate_until", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(run_dir, "choosing,writing,copy", tasks, out)
    assert json.loads(out.read_text())["tasks"].keys() == {"copy", "choosing"}


def evaluate_tasks(run_dir: Path, tasks: str, include_path: Path, out: Path) -> None:
    options = ["--tasks", tasks, "--include-path", str(include_path), "--out", str(out), "--limit", "1"]
    evaluate_main(["--checkpoint", str(run_dir), *options])
