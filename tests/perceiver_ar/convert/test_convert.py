"""Models of krasserm/perceiver-io through the command, against what it was recorded to compute."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, PerceiverTokenizer, pipeline

import perceiver_ar.hf
from perceiver_ar.convert.__main__ import main
from tests.pretrain.checkpoint.stored_state import refused_writes

ROOT = Path(__file__).parents[3]
TOLERANCE = dict(rtol=1e-5, atol=1e-5)
CACHED_TOLERANCE = dict(rtol=1e-5, atol=3e-5)
"""Of logits up to 14: tokens one at a time are added up in another order."""
FORMS = ["safetensors", "bin", "lightning"]


@pytest.fixture
def source(request, recording, write_folder, lightning):
    return lightning[recording.name] if request.param == "lightning" else write_folder(recording, request.param)


def convert(source, out, *options):
    main([str(source), str(out), *options])
    return AutoModelForCausalLM.from_pretrained(out).eval()


def attention_mask(recording):
    padding = recording.tensors.get("pad_mask")
    return None if padding is None else (~padding).long()


@pytest.mark.parametrize("source", FORMS, indirect=True)
def test_logits_and_greedy_continuations(source, recording, tmp_path):
    assert importlib.util.find_spec("pytorch_lightning") is None
    model = convert(source, tmp_path / "ours")
    logits = model(
        recording.tensors["input_ids"],
        attention_mask=attention_mask(recording),
        prefix_length=recording.values["prefix_len"],
    ).logits
    torch.testing.assert_close(logits, recording.tensors["logits"], **TOLERANCE)
    prompt, tokens = recording.tensors["greedy.prompt"], recording.tensors["greedy.tokens"]
    options = dict(num_latents=recording.values["greedy.num_latents"], max_length=tokens.shape[1], do_sample=False)
    # The random prompt holds the padding's id, which `generate` would take for padding.
    continued = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert continued.tolist() == tokens.tolist()


def test_cached_logits_token_by_token(recording, write_folder, tmp_path):
    model = convert(write_folder(recording), tmp_path / "ours")
    ids, prefix, mask = recording.tensors["input_ids"], recording.values["prefix_len"], attention_mask(recording)
    cache, logits = None, []
    with torch.inference_mode():
        for stop in range(prefix + 1, ids.shape[1] + 1):
            output = model(
                ids[:, :stop] if cache is None else ids[:, stop - 1 : stop],
                attention_mask=None if mask is None else mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
                prefix_length=prefix,
            )
            cache = output.past_key_values
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), recording.tensors["cached_logits"], **CACHED_TOLERANCE)


def test_a_byte_model_keeps_its_tokenizer(text_model, write_folder, tmp_path):
    folder = write_folder(text_model)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PerceiverTokenizer"}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Theirs\n")
    convert(folder, tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs = PerceiverTokenizer()
    assert tokenizer("Aé 🙂\n").input_ids == theirs("Aé 🙂\n", add_special_tokens=False).input_ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (theirs.pad_token_id, theirs.eos_token_id)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", text_model.hparams["max_seq_len"])
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert card.data.license == "apache-2.0" and str(folder) in card.text
    generated = pipeline("text-generation", model=str(tmp_path / "ours"))("To be", max_new_tokens=3, do_sample=False)
    assert generated[0]["generated_text"].startswith("To be")


def test_a_vocabulary_alone_is_kept(text_model, write_folder, tmp_path):
    folder = write_folder(text_model, tokenizer_class="XLNetTokenizer")
    (tmp_path / "text").write_text("\n".join(f"the number {i} and its square {i * i}" for i in range(300)))
    control = ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "spiece"), vocab_size=90, control_symbols=control,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLNetTokenizer"}')
    convert(folder, tmp_path / "ours")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    text = "the square of number 7"
    ours = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert ours(text, add_special_tokens=False).input_ids == pieces.encode(text)
    # What has been written is a tokenizer.json, which is kept as it is.
    again = write_folder(text_model, "bin")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (again / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    convert(again, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text).input_ids == ours(text).input_ids


@pytest.mark.parametrize("content", ["{", "{}", '{"added_tokens": [], "model": 7}'])
def test_a_damaged_tokenizer_is_one_line(content, text_model, write_folder, tmp_path):
    folder = write_folder(text_model)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*/their-safetensors: its tokenizer cannot be loaded: [^\n]*$"):
        main([str(folder), str(tmp_path / "ours")])


@pytest.mark.parametrize("content", [b"---\n: : :\n---\n", b"\xff\xfe", b"no metadata"])
def test_a_card_that_says_nothing_is_no_obstacle(content, text_model, write_folder, tmp_path):
    folder = write_folder(text_model)
    (folder / "README.md").write_bytes(content)
    convert(folder, tmp_path / "ours")
    assert "the source does not state one" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize("full_at", [100, 60_000])
def test_a_full_disk_leaves_nothing(full_at, text_model, write_folder, tmp_path):
    folder = write_folder(text_model)
    with refused_writes(full_at), pytest.raises(OSError, match="File too large"):
        main([str(folder), str(tmp_path / "ours")])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_symbolic_audio_has_ids_only(lightning, tmp_path, capsys):
    model = convert(lightning["csm_audio"], tmp_path / "ours")
    assert model.generation_config.pad_token_id == 388
    assert not (tmp_path / "ours" / "tokenizer.json").exists()
    assert "A symbolic audio model" in (tmp_path / "ours" / "README.md").read_text()
    assert capsys.readouterr().err == ""


def test_a_lightning_checkpoint_takes_the_tokenizer_it_is_given(lightning, tmp_path, capsys):
    main([str(lightning["xlnet"]), str(tmp_path / "without")])
    assert "xlnet-base-cased" in capsys.readouterr().err and not (tmp_path / "without" / "tokenizer.json").exists()
    main([str(lightning["xlnet"]), str(tmp_path / "with"), "--tokenizer", "bytes"])
    assert capsys.readouterr().err == "" and len(AutoTokenizer.from_pretrained(tmp_path / "with")) == 262


@pytest.mark.parametrize("kind", ["csm_default", "bytes"])
def test_a_lightning_checkpoint_of_bytes(kind, lightning, tmp_path):
    main([str(lightning[kind]), str(tmp_path / "ours")])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "ours")) == 262


def test_hyper_parameters_that_an_earlier_version_did_not_have(text_model, write_folder, tmp_path):
    for name in ("num_self_attention_rotary_layers", "max_heads_parallel", "output_norm", "abs_pos_emb"):
        del text_model.hparams[name]
    model = convert(write_folder(text_model), tmp_path / "ours")
    logits = model(text_model.tensors["input_ids"], prefix_length=48).logits
    torch.testing.assert_close(logits, text_model.tensors["logits"], **TOLERANCE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "is a model of type gpt2"),
        ({"model_type": "perceiver-io-masked-language-model"}, "no hyper-parameters"),
        ({"model_config": None}, "no hyper-parameters"),
        ({"model_config": {"max_latents": "many"}}, "max_latents must be a number, not 'many'"),
        ({"model_config": {"max_latents": 8, "num_heads": 3}}, "must be divisible by num_heads"),
        ({"model_config": {"max_latents": 8}}, "weight embed.tokens.weight is (262, 64), by the model's configuration"),
    ],
)  # fmt: skip
def test_other_models_are_refused(fields, message, text_model, write_folder, tmp_path):
    with pytest.raises(ValueError) as error:
        main([str(write_folder(text_model, **fields)), str(tmp_path / "ours")])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_an_earlier_folder_is_never_overwritten(text_model, write_folder, tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="exists"):
        main([str(write_folder(text_model)), str(tmp_path / "ours")])
    assert not list((tmp_path / "ours").iterdir())


def test_our_own_models_need_no_conversion(text_model, write_folder, tmp_path):
    convert(write_folder(text_model), tmp_path / "ours")
    with pytest.raises(ValueError, match="already"):
        main([str(tmp_path / "ours"), str(tmp_path / "again")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder", "out"], "no/such/folder: no such folder"),
        (["/no-such-folder", "out"], "/no-such-folder: no such folder"),
        ([str(ROOT), "out"], "config.json: no such file"),
        ([__file__, "out"], "is not a file that torch.save has written"),
        (["only-one"], "the following arguments are required: OUT; see --help"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises((OSError, ValueError)) as error:
        main(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "perceiver_ar.convert", __file__, "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1


def test_nothing_but_the_result_is_printed(text_model, write_folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    process = subprocess.run(
        [sys.executable, "-m", "perceiver_ar.convert", write_folder(text_model), "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    # DeepSpeed, which transformers looks for as it saves, warns where it finds no GPU.
    assert (process.stdout, process.stderr) == ("out: causal language model\n", "")


def test_config_is_ours(text_model, write_folder, tmp_path):
    convert(write_folder(text_model), tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "perceiver-ar" and config["kv_norm"] == "prefix"
    assert perceiver_ar.hf.PerceiverARHFConfig.from_pretrained(tmp_path / "ours").learned_positions
