"""A step taken again is the step that the run took, and what spoilt it is found."""

import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pretrain.distributed import Ranks
from pretrain.errors import InputError
from pretrain.outcome import read_outcome, write_outcome
from pretrain.replay import find_start, parse, recorded, run_config, samples_table, show

ROOT = Path(__file__).parents[2]
ALONE = Ranks(0, 1, torch.device("cpu"), None)
WORKER = Path(__file__).with_name("poisoned_worker.py")
POISONED, SPOILT_STEP, STEPS = 30, 8, 12


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def between_braces(output: str) -> dict:
    return json.loads(output[output.index("{") : output.rindex("}") + 1])


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run, start_ranks, finish_ranks):
    """A run of one rank, of which a step has a sample that a layer cannot take."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    fields = {"train__steps": STEPS, "checkpoint__every": 5, "checkpoint__keep": 9, "model__residual_dropout": 0.1}
    config = write_run(folder, data__windows="crop", **fields)
    finish_ranks(start_ranks([WORKER, "train", config], 1))
    return folder


@pytest.fixture(scope="module")
def replays(run, start_ranks, finish_ranks):
    """By (step, ranks)."""
    before = contents(run)
    started = {
        (step, ranks): start_ranks([WORKER, "replay", "--run", run, "--step", step, "--json", "--top", 50], ranks)
        for step, ranks in [(10, 1), (SPOILT_STEP, 2)]
    }
    found = {case: between_braces(finish_ranks(processes)) for case, processes in started.items()}
    assert contents(run) == before
    return found


def records(run: Path, kind: str) -> dict[int, dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


def test_run_skips_the_spoilt_step_and_names_the_sample(run):
    [(step, record)] = records(run, "skipped").items()
    assert step == SPOILT_STEP
    assert (record["problem"], record["loss"], record["samples"]) == ("loss not finite", None, [28, 31])
    first, *others = record["worst_samples"]
    assert first == {"sample": POISONED, "loss": None}
    assert len(others) == 3
    assert all(math.isfinite(row["loss"]) for row in others)


def test_step_behind_a_skipped_one_is_the_runs_own(run, replays):
    found, recorded = replays[10, 1], records(run, "train")[10]
    assert found["from_step"] == 5
    assert found["recorded"] == recorded
    for number in ("loss", "grad_norm", "lr"):
        assert found[number] == recorded[number]
    assert found["problem"] is None
    assert found["not_finite"] == []
    assert math.hypot(*(row["grad_norm"] for row in found["parameters"])) == pytest.approx(found["grad_norm"])


def test_shows_samples_with_their_texts(run, replays):
    samples = replays[10, 1]["samples"]
    losses = [row["loss"] for row in samples]
    assert {row["sample"] for row in samples} == {36, 37, 38, 39}
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 4 == pytest.approx(replays[10, 1]["loss"])
    [corpus] = {row["corpus"] for row in samples}
    assert corpus == "shards"
    texts = [
        path.read_text()
        for path in Path(json.loads(run.with_suffix(".yaml").read_text())["data"]["corpus"]).parent.glob("*.txt")
    ]
    assert all(len(row["text"]) == 16 and any(row["text"] in text for text in texts) for row in samples)


def test_finds_the_module_rank_and_sample_that_spoil_a_step(replays):
    found = replays[SPOILT_STEP, 2]
    assert (found["problem"], found["loss"], found["grad_norm"]) == ("loss not finite", None, None)
    assert found["not_finite"] == [{"module": "self_attention.0.mlp", "rank": 1}]
    assert [row["sample"] for row in found["samples"] if row["loss"] is None] == [POISONED]
    assert found["samples"][0]["sample"] == POISONED
    assert found["recorded"]["kind"] == "skipped"


def test_shows_people_what_it_found(run, replays, capsys):
    for (step, _), found in replays.items():
        show({**found, "recorded": None}, found["recorded"], as_json=False)
        text = capsys.readouterr().out
        assert f"step            {step}, from step 5" in text
    assert "judged          skipped: loss not finite" in text
    assert "recorded        skipped: loss not finite" in text
    assert "not finite      first in the output of self_attention.0.mlp (rank 1)" in text
    assert "embed.tokens.weight" in text
    assert "corpus shards, window" in " ".join(text.split())


def test_shows_which_examples_samples_are():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(samples_table([{"sample": 5, "loss": 1.5, "example": 17, "epoch": 2, "text": "17.txt"}]))
    assert "example 17, epoch 2" in console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--step", 4], ["--step", 7, "--checkpoint", "checkpoints/step-00000005"]])
def test_begins_where_asked_or_at_the_beginning(run, start_ranks, finish_ranks, options):
    options = [run / option if str(option).startswith("checkpoints") else option for option in options]
    found = between_braces(finish_ranks(start_ranks([WORKER, "replay", "--run", run, "--json", *options], 1)))
    assert found["from_step"] == (5 if len(options) > 2 else 0)
    recorded = records(run, "train")[found["step"]]
    assert (found["loss"], found["grad_norm"]) == (recorded["loss"], recorded["grad_norm"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory, prepare):
    """A corpus that shares no letter with the other one."""
    return prepare(tmp_path_factory.mktemp("digits"), [" ".join(map(str, range(i, 9000, 37))) for i in range(20)])


@pytest.mark.slow
def test_new_weights_of_a_mixture_are_no_spike(tmp_path, corpus, digits, write_run, start_ranks, finish_ranks):
    mixture = {
        "words": {"corpus": str(corpus), "weight": {"0": 1, "10": 0}},
        "digits": {"corpus": str(digits), "weight": {"0": 0, "10": 1}},
    }
    fields = {"data__corpus": None, "data__mixture": mixture, "train__steps": STEPS, "checkpoint__every": 9}
    config = write_run(tmp_path / "run", **fields, stability__window=8, stability__sigmas=2.0)
    finish_ranks(start_ranks(["pretrain/train.py", "--config", config], 1))
    losses = {step: record["loss"] for step, record in records(tmp_path / "run", "train").items()}
    assert losses[11] > 1.2 * losses[10]  # of what is then a spike above 1.1
    assert not records(tmp_path / "run", "skipped")
    replay = ["pretrain/replay.py", "--run", tmp_path / "run", "--json", "--step", 12]
    found = between_braces(finish_ranks(start_ranks(replay, 1)))
    assert (found["from_step"], found["loss"]) == (9, losses[12])
    assert {row["corpus"] for row in found["samples"]} == {"digits"}


@pytest.mark.slow
def test_streams_are_read_again(tmp_path, write_run, start_ranks, finish_ranks):
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for part, letters in enumerate(("abcde ", "vwxyz ")):
        lines = [json.dumps({"text": "".join(letters[i * j % 6] for j in range(100))}) for i in range(60)]
        (dataset / f"{part}.jsonl").write_text("\n".join(lines))
    stream = {"dataset": str(dataset), "streams": 2, "validation_bytes": 500, "validation_fraction": 0.1}
    fields = {"data__corpus": None, "data__stream": stream, "train__steps": STEPS, "checkpoint__every": 5}
    run = write_run(tmp_path / "run", **fields).with_suffix("")
    finish_ranks(start_ranks(["pretrain/train.py", "--config", run.with_suffix(".yaml")], 1))
    before = contents(run)
    replay = ["pretrain/replay.py", "--run", run, "--json", "--step", 8]
    found = between_braces(finish_ranks(start_ranks(replay, 2)))
    assert contents(run) == before
    assert found["loss"] == pytest.approx(records(run, "train")[8]["loss"], abs=1e-5)
    # Half a batch belongs to either stream, which reads one of the files.
    assert {row["sample"]: row["stream"] for row in found["samples"]} == {28: 0, 29: 0, 30: 1, 31: 1}
    for row in found["samples"]:
        assert set(row["text"]) <= set(("abcde ", "vwxyz ")[row["stream"]])


def test_begins_at_the_newest_whole_checkpoint_before_the_step(run, tmp_path, capsys):
    run = Path(shutil.copytree(run, tmp_path / "run"))
    folder = run / "checkpoints"

    def start(step: int) -> Path | None:
        return find_start(parse(["--run", str(run), "--step", str(step)]), ALONE)

    assert [start(step) for step in (5, 6, 10)] == [None, folder / "step-00000005", folder / "step-00000005"]
    assert start(11) == folder / "step-00000010"
    assert capsys.readouterr().err == ""
    spoil(folder / "step-00000010")
    assert start(11) == folder / "step-00000005"
    warning = f"warning: passing over damaged checkpoint {folder / 'step-00000010'}: state.json has "
    assert capsys.readouterr().err.startswith(warning)
    spoil(folder / "step-00000005")
    with pytest.raises(InputError, match=r"of the checkpoints in .* none is whole"):
        start(11)


def spoil(checkpoint: Path) -> None:
    state = checkpoint / "state.json"
    state.write_bytes(state.read_bytes()[:-1])


def test_says_why_the_run_has_recorded_nothing(run, tmp_path, replays, capsys):
    [found] = [found for (step, _), found in replays.items() if step == 10]
    run = Path(shutil.copytree(run, tmp_path / "run"))
    metrics = run / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if json.loads(line)["step"] < 10]
    metrics.write_text("".join(lines))
    write_outcome(run, replace(read_outcome(run), step=9))
    assert recorded(run, 9, every=1)["step"] == 9
    show({**found, "recorded": None}, recorded(run, 10, every=1), as_json=False)
    assert "recorded        nothing: the run came to step 9\n" in capsys.readouterr().out
    write_outcome(run, replace(read_outcome(run), step=12))
    show({**found, "recorded": None}, recorded(run, 10, every=3), as_json=False)
    assert "recorded        nothing: logging.every is 3\n" in capsys.readouterr().out


@pytest.mark.slow
def test_output_that_nobody_reads_to_its_end_is_no_error(run):
    command = [sys.executable, "pretrain/replay.py", "--run", run, "--step", "6", "--json"]
    replay = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    replay.stdout.close()
    assert "Traceback" not in replay.stderr.read()
    assert replay.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--step", "0"], "--step: must be from 1 to train.steps"),
        (["--step", "13"], "--step: must be from 1 to train.steps"),
        (["--step", "3", "--top", "0"], "--top: must be at least 1"),
        (["--step", "3", "train.stops=3"], "train.stops"),
        (["--step", "5", "--checkpoint", "{run}/checkpoints/step-00000005"], "is of step 5, not before --step 5"),
        (["--step", "5", "--checkpoint", "{run}"], r"is a run directory; name a checkpoint in it, such as .*/step-0"),
        (["--step", "5", "--checkpoint", "{run}/checkpoints"], "is no whole checkpoint"),
    ],
)
def test_refuses(run, options, problem):
    with pytest.raises(InputError, match=problem):
        arguments = parse(["--run", str(run), *(option.format(run=run) for option in options)])
        run_config(arguments)
        find_start(arguments, ALONE)


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"is no run directory, it has no config\.yaml"):
        run_config(parse(["--run", str(tmp_path), "--step", "1"]))
