"""The command that continues a prompt: what it prints, and what it refuses."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver_ar.hf import PerceiverARForCausalLM
from pretrain import generate
from pretrain.checkpoint import checkpoint_path
from pretrain.errors import InputError
from pretrain.exported_model import find_model
from tests.pretrain.stored_run import store_run

ROOT = Path(__file__).parents[2]
PROMPT = "A number: é, a number: é"
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_run(tmp_path_factory.mktemp("run"), {"corpus": str(corpus)})


@pytest.fixture(scope="module")
def model_and_tokenizer(run_dir: Path) -> tuple[Any, Any]:
    model = find_model(run_dir)
    return model.hf_model(), model.tokenizer()


def continuation(model: Any, tokenizer: Any, prompt: str, tokens: int, seed: int | None = None, **options: Any) -> str:
    """What the model itself makes of the prompt, decoded in one piece."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else torch.tensor([[2]])
    if seed is not None:
        torch.manual_seed(seed)
    [sequence] = model.generate(ids, max_new_tokens=tokens, **options)
    return tokenizer.decode(sequence[ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--greedy"], GREEDY),
        (["--seed", "1"], SAMPLING | {"seed": 1}),
        (["--seed", "1", "--temperature", "2", "--top-k", "9"], SAMPLING | dict(seed=1, temperature=2.0, top_k=9)),
        (["--greedy", "--num-beams", "3"], GREEDY | {"num_beams": 3}),
        (["--seed", "2", "--num-beams", "2"], SAMPLING | dict(seed=2, num_beams=2)),
        (["--penalty-alpha", "0.6"], GREEDY | dict(penalty_alpha=0.6, top_k=4)),
        (["--penalty-alpha", "0.6", "--top-k", "7"], GREEDY | dict(penalty_alpha=0.6, top_k=7)),
        (["--greedy", "--prompt-lookup", "3"], GREEDY),
        (["--greedy", "--repetition-penalty", "1.5"], GREEDY | {"repetition_penalty": 1.5}),
        (["--greedy", "--num-latents", "4"], GREEDY | {"num_latents": 4}),
        (["--greedy", "--latent-policy", "refresh"], GREEDY | {"latent_policy": "refresh"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_way_of_decoding_prints_what_the_model_generates(
    run_dir: Path,
    model_and_tokenizer: tuple[Any, Any],
    arguments: list[str],
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--checkpoint", str(run_dir), "--prompt", PROMPT, "--max-new-tokens", "70"]
    assert generate.main([*command, *arguments]) == 0
    assert capsys.readouterr().out == PROMPT + continuation(*model_and_tokenizer, PROMPT, 70, **options) + "\n"


def test_a_smaller_model_helps_and_changes_nothing(
    run_dir: Path,
    corpus: Path,
    tmp_path: Path,
    model_and_tokenizer: tuple[Any, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store_run(tmp_path, {"corpus": str(corpus)}, (10,), num_layers=1)
    command = ["--checkpoint", str(run_dir), "--prompt", PROMPT, "--max-new-tokens", "40", "--greedy"]
    assert generate.main([*command, "--assistant", str(tmp_path)]) == 0
    assert capsys.readouterr().out == PROMPT + continuation(*model_and_tokenizer, PROMPT, 40, **GREEDY) + "\n"
    with pytest.raises(InputError, match=f"^{tmp_path}/none"):
        generate.main([*command, "--assistant", f"{tmp_path}/none"])


def test_an_assistant_of_another_tokenizer_is_refused(run_dir: Path, tmp_path: Path) -> None:
    find_model(run_dir).hf_model().save_pretrained(tmp_path)
    tokenizer = find_model(run_dir).tokenizer()
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^--assistant: .* has another tokenizer than run"):
        generate.main(["--checkpoint", str(run_dir), "--prompt", "x", "--assistant", str(tmp_path)])


def test_learned_positions_end(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_run(tmp_path, {"corpus": str(corpus)}, (10,), learned_positions=True)
    command = ["--checkpoint", str(tmp_path), "--prompt", "four", "--greedy", "--max-new-tokens"]
    assert generate.main([*command, "60"]) == 0
    assert capsys.readouterr().out.startswith("four")
    with pytest.raises(InputError, match=r"^--max-new-tokens: 61 behind the prompt's 4 go beyond the 64 positions"):
        generate.main([*command, "61"])
    assert capsys.readouterr().out == ""


def test_precision_is_that_asked_for(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", str(run_dir), "--prompt", PROMPT, "--max-new-tokens", "40", "--greedy"]
    assert generate.main([*command, "--dtype", "bf16"]) == 0
    model = find_model(run_dir)
    expected = continuation(model.hf_model(torch.bfloat16), model.tokenizer(), PROMPT, 40, **GREEDY)
    assert capsys.readouterr().out == PROMPT + expected + "\n"


def test_a_document_begins_behind_the_end_of_another(
    run_dir: Path, model_and_tokenizer: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(checkpoint_path(run_dir, 20)), "--prompt", "", "--greedy", "--max-new-tokens", "20"]
    assert generate.main(command) == 0
    assert capsys.readouterr().out == continuation(*model_and_tokenizer, "", 20, **GREEDY) + "\n"


@pytest.mark.parametrize("place", ["file", "standard input"])
def test_prompts_are_read_byte_for_byte(
    run_dir: Path,
    model_and_tokenizer: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    prompt = "line one\r\nline two\n\n"
    (tmp_path / "prompt.txt").write_bytes(prompt.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode()), encoding="ascii"))
    file = "-" if place == "standard input" else str(tmp_path / "prompt.txt")
    command = ["--checkpoint", str(run_dir), "--prompt-file", file, "--greedy", "--max-new-tokens", "20"]
    assert generate.main(command) == 0
    expected = prompt + continuation(*model_and_tokenizer, prompt, 20, **GREEDY) + "\n"
    assert capsys.readouterr().out == expected


def test_text_appears_as_it_is_generated_and_ctrl_c_ends_it(run_dir: Path) -> None:
    arguments = ["--checkpoint", str(run_dir), "--prompt", "Once ", "--greedy", "--max-new-tokens", "1000000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "pretrain" / "generate.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        begun = process.stdout.read(len("Once ") + 20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert begun.startswith(b"Once ")
    assert rest.endswith(b"\n")
    assert (process.returncode, errors) == (130, b"")


def test_characters_are_printed_whole_and_at_once(
    model_and_tokenizer: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = model_and_tokenizer[1]
    printer = generate.TextPrinter(tokenizer, "the prompt ")
    printer.put(torch.tensor([tokenizer.encode("the prompt ")]))
    assert capsys.readouterr().out == "the prompt "
    text = "naïve café 😀 " * 9
    shown = ""
    ids = tokenizer.encode(text)
    for count, token in enumerate(ids, start=1):
        printer.put(torch.tensor([token]))
        shown += capsys.readouterr().out
        assert shown == bytes(i - 6 for i in ids[:count]).decode(errors="ignore")
    stray = [0xC3 + 6, 0x28 + 6, 0xE2 + 6]
    printer.put(torch.tensor(stray))
    assert capsys.readouterr().out == "�("
    printer.end()
    assert capsys.readouterr().out == "�\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens: must be at least 1, not 0"),
        (["--temperature", "0"], "--temperature: must be greater than 0, not 0"),
        (["--temperature", "hot"], "--temperature: must be a number"),
        (["--top-p", "1.5"], "--top-p: must be greater than 0 and at most 1, not 1.5"),
        (["--seed", "-1"], "--seed: must be from 0 to 4294967295, not -1"),
        (["--num-beams", "1"], "--num-beams: must be at least 2, not 1"),
        (["--num-latents", "17"], r"--num-latents: 17 is more than the model's max_latents \(16\)"),
        (["--penalty-alpha", "0.5", "--top-k", "1"], "--top-k: contrastive search chooses among at least 2"),
        (["--penalty-alpha", "0.5", "--seed", "1"], "--seed: has no meaning with --penalty-alpha"),
        (["--penalty-alpha", "0.5", "--greedy"], "--penalty-alpha: has no meaning with --greedy"),
        (["--greedy", "--temperature", "2"], "--temperature: has no meaning with --greedy"),
        (["--prompt-lookup", "3", "--num-beams", "2"], "--num-beams: has no meaning with --prompt-lookup"),
        (["--prompt-lookup", "3", "--latent-policy", "refresh"], "--latent-policy: --prompt-lookup needs sliding"),
        (["--assistant", "x", "--latent-policy", "refresh"], "--latent-policy: --assistant needs sliding"),
        (["--assistant", "x", "--num-beams", "2"], "--num-beams: has no meaning with --assistant"),
        (["--assistant", "x", "--prompt-lookup", "3"], "--assistant: has no meaning with --prompt-lookup"),
        (["--assistant", "x", "--penalty-alpha", "0.5"], "--assistant: has no meaning with --penalty-alpha"),
        (["--repetition-penalty", "0"], "--repetition-penalty: must be greater than 0, not 0"),
        (["--latent-policy", "slide"], "--latent-policy"),
    ],
)
def test_bad_options_are_named(run_dir: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate.main(["--checkpoint", str(run_dir), "--prompt", "x", *arguments])


def test_what_decoding_refuses_is_told_on_a_line_of_its_own(run_dir: Path, monkeypatch, capsys) -> None:
    def refuse(self: PerceiverARForCausalLM, input_ids: Tensor, *, streamer: generate.TextPrinter, **_: object) -> None:
        streamer.put(input_ids)
        raise ValueError("not so")

    monkeypatch.setattr(PerceiverARForCausalLM, "generate", refuse)
    with pytest.raises(InputError, match="not so"):
        generate.main(["--checkpoint", str(run_dir), "--prompt", "x"])
    assert capsys.readouterr().out == "x\n"


def test_prompts_that_are_no_text_are_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for file in ("bytes", "missing"):
        with pytest.raises(InputError, match="--prompt-file: cannot read"):
            generate.main(["--checkpoint", str(run_dir), "--prompt-file", str(tmp_path / file)])
