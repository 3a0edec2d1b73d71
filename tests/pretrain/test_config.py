"""YAML in, configuration out, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perceiver_ar.models.config import PRESETS, PerceiverARConfig
from perceiver_ar.models.perceiver_config import PERCEIVER_PRESETS
from pretrain.config import dump_config, load_config
from pretrain.corpus.config import CorpusRunConfig
from pretrain.data import corpus_locations
from pretrain.errors import InputError
from pretrain.schema import dump_yaml, load_yaml
from pretrain.tasks.causal_lm.config import CausalLMConfig, ModelSection

ROOT = Path(__file__).resolve().parents[2]
INITIAL_MODELS = {
    "models/language-perceiver": "perceiver-io-mlm-bytes",
    "runs/mlm_imdb": "perceiver-io-mlm-bytes",
    "runs/imdb_frozen": "perceiver-io-mlm-bytes",
    "converted/optical-flow-perceiver": "perceiver-io-flow",
}
"""What ready configurations start from, and the preset that it is made of."""
MINIMAL: dict[str, Any] = {
    "run": {"dir": "runs/x"},
    "model": {"vocab_size": 262},
    "data": {"corpus": "data/x"},
    "train": {"steps": 10, "global_batch": 8, "micro_batch": 4},
}


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_defaults_fill_what_is_not_given(minimal: Path) -> None:
    config = load_config(minimal)
    assert config.model == ModelSection(vocab_size=262)
    assert config.run.dir == Path("runs/x")
    assert (config.train.precision, config.train.zero.stage, config.optimizer.betas) == ("bf16", 1, (0.9, 0.95))


def test_overrides_win_and_are_yaml(minimal: Path) -> None:
    overrides = [
        "optimizer.lr=1e-3",  # YAML 1.1 would read text
        "optimizer.betas=[0.8, .9]",
        "train.zero.stage=3",
        "train.activation_checkpointing=full",
        "train.steps=1_000",
        "run.dir=runs/2024-01-01",
        "logging.wandb_project=yes",  # YAML 1.1 would read true
        "model.rotary_layers=null",
        "train.steps=2_000",  # the last one counts
    ]
    config = load_config(minimal, overrides)
    assert config.optimizer.lr == 0.001
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.train.zero.stage == 3
    assert config.train.activation_checkpointing == "full"
    assert config.train.steps == 2000
    assert config.run.dir == Path("runs/2024-01-01")
    assert config.logging.wandb_project == "yes"
    assert config.model.rotary_layers is None


def test_a_whole_number_is_a_number(minimal: Path) -> None:
    assert load_config(minimal, ["optimizer.weight_decay=1"]).optimizer.weight_decay == 1.0


def test_home_folder(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(minimal, ["run.dir=~/runs"]).run.dir == Path("/home/someone/runs")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_resolved(minimal: Path, name: str) -> None:
    config = load_config(minimal, [f"model.preset={name}", "model.num_layers=3", "model.init_scale=0.5"])
    assert config.model.architecture == PerceiverARConfig.preset(name, vocab_size=262, num_layers=3, init_scale=0.5)
    assert "preset" not in dump_config(config)


def test_wsd_schedule(minimal: Path) -> None:
    config = load_config(minimal, ["schedule={kind: wsd, warmup_steps: 4, decay_steps: 6}"])
    assert (config.schedule.warmup_steps, config.schedule.decay_steps) == (4, 6)


def test_values_are_final(minimal: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(minimal).train.steps = 5


def test_every_field_is_dumped(minimal: Path) -> None:
    data = yaml.safe_load(dump_config(load_config(minimal)))
    assert set(data) == set(CausalLMConfig.model_fields)
    assert set(data["model"]) == {field.name for field in dataclasses.fields(PerceiverARConfig)} | {"init_from"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_configurations_are_good(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if (source := load_yaml(path)["model"].get("init_from")) is not None:
        architecture = PERCEIVER_PRESETS[INITIAL_MODELS[source]][1]
        model_type = "perceiver-optical-flow" if "flow" in source else "perceiver-masked-lm"
        (tmp_path / source).mkdir(parents=True)
        (tmp_path / source / "config.json").write_text(json.dumps({"model_type": model_type, **architecture}))
    config = load_config(path)
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_configurations_name_corpora_that_can_be_prepared(path: Path) -> None:
    prepared = {str(load_yaml(corpus)["out"]) for corpus in (ROOT / "configs" / "corpora").glob("*.yaml")}
    if load_yaml(path)["model"].get("init_from") is not None:
        pytest.skip("its model is not there")
    config = load_config(path)
    if isinstance(config, CorpusRunConfig) and config.data.stream is None and config.data.copy_task is None:
        for _, location in corpus_locations(config).values():
            assert location in prepared or f"out={location}" in path.read_text()


def test_line_number_of_a_syntax_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("run:\n  dir: x\nmodel: {a: 1\n")
    with pytest.raises(InputError, match=r"bad\.yaml: line 4: "):
        load_yaml(path)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
NUMBERS_AS_TEXT = st.from_regex(r"[-+]?[0-9_]{0,3}\.?[0-9]{0,2}([eE][-+]?[0-9]{1,2})?", fullmatch=True)
WORDS = st.sampled_from(
    ["yes", "no", "on", "null", "~", "true", "True", ".nan", ".inf", "0x1f", "0o7", "1:30", "2024-01-01"]
)
VALUES = st.recursive(
    SCALARS | NUMBERS_AS_TEXT | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
REUSED_FOLDER = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@REUSED_FOLDER
@given(data=st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_yaml_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    assert load_yaml(path) == data


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    positive, small = st.integers(1, 10**6), st.integers(1, 8)
    number = st.floats(1e-12, 1e6)
    micro, heads, latents = draw(small), draw(small), draw(positive)
    steps, stage = draw(st.integers(20, 10**6)), draw(st.integers(1, 3))
    path = TEXT.filter(lambda text: text and not text.startswith("~"))
    wsd = draw(st.booleans())
    return {
        "run": {"dir": draw(path), "seed": draw(st.integers(0, 2**40))},
        "model": {
            "vocab_size": draw(positive),
            "preset": draw(st.sampled_from(sorted(PRESETS))),
            "max_latents": latents,
            "max_seq_len": latents + draw(positive),
            "num_heads": heads,
            "num_channels": heads * draw(positive),
            "rotary_base": draw(number),
            "prefix_dropout": draw(st.floats(0, 0.99)),
        },
        "data": {"corpus": draw(path), "tokenizer": draw(TEXT)},
        "train": {
            "steps": steps,
            "global_batch": micro * draw(positive),
            "micro_batch": micro,
            "precision": draw(st.sampled_from(["bf16", "fp32"])),
            "zero": {"stage": stage, "offload_optimizer": draw(st.booleans()), "offload_parameters": stage == 3},
        },
        "optimizer": {
            "lr": draw(number),
            "betas": draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2)),
            "eps": draw(number),
        },
        "schedule": {
            "kind": "wsd" if wsd else draw(st.sampled_from(["constant", "cosine", "linear"])),
            "warmup_steps": draw(st.integers(0, 10)),
            "decay_steps": 10 if wsd else 0,
        },
        "logging": {"wandb_project": draw(st.none() | TEXT)},
    }


@REUSED_FOLDER
@given(data=configurations())
def test_configuration_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    config = load_config(path)
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
