"""`slurm/submit.py` refuses in one line what could not run, and leaves a submission that holds all a job needs."""

from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.errors import InputError
from slurm.submit import ROOT, main

TWO_RANKS = ("--", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")


@pytest.fixture
def config(tmp_path, write_run) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one_node", "train.steps=none"), "train.steps"),
        (("many_nodes", "--", "--ntasks-per-node=8"), "ranks (32)"),
        (("many_nodes", "--", "-N", "3", "--ntasks-per-node=1"), "ranks (3)"),
        (("one_node", "--", "--ntasks=5"), "ranks (5)"),
        (("many_nodes", "--", "--nodes=2-4"), "--nodes: must be a whole number, not '2-4'"),
        (("sweep",), "--sweep: is missing; it names the file with each run's overrides a line"),
        (("one_node", "--sweep", "lines"), "--sweep: goes with the template sweep only, not with one_node"),
        (("sweep", "--sweep", "missing"), "--sweep: missing cannot be read (No such file or directory)"),
        (("one_node", "--time=2-0"), "--time=2-0: no option of submit.py, see --help; those for sbatch go behind --"),
    ],
)
def test_what_could_not_run_is_refused(config, tmp_path, arguments, message):
    template, *rest = arguments
    with pytest.raises(InputError) as raised:
        main([template, "--config", str(config), *rest])
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("optimizer.lr=1e-3\n\noptimizer.lr=high\n", "lines.txt, line 3: optimizer.lr"),
        ("run.dir=a  # twice\nrun.dir=b\nrun.dir=a\n", "lines.txt, line 3: run.dir a is that of line 1"),
        ("optimizer.lr='1e-3\n", "lines.txt, line 1: No closing quotation"),
        ("# none\n", "lines.txt has no line with a run's overrides"),
    ],
)
def test_sweep_with_a_wrong_line_is_refused(config, tmp_path, lines, message):
    (tmp_path / "lines.txt").write_text(lines)
    sweep = ("sweep", "--config", str(config), "--sweep", str(tmp_path / "lines.txt"))
    with pytest.raises(InputError) as raised:
        main([*sweep, *TWO_RANKS])
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["HEALTH_DISK_GIB", "HEALTH_MEMORY_GIB"])
@pytest.mark.parametrize("value", ["x", "nan", "-1"])
def test_limit_of_the_health_check_that_is_no_number_is_refused(config, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: must be a number of GiB, not '{value}'$"):
        main(["one_node", "--config", str(config), *TWO_RANKS])
    assert not (tmp_path / "run").exists()


def test_host_without_slurm_is_told(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch: no such command"):
        main(["one_node", "--config", str(config), *TWO_RANKS])
    assert not (tmp_path / "run").exists()


def test_what_the_run_directory_holds_outlives_a_failed_submission(config, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError):
        main(["one_node", "--config", str(config), *TWO_RANKS])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]


def test_refusal_of_slurm_is_passed_on(slurm, config, tmp_path):
    with pytest.raises(InputError, match=r"^sbatch: invalid partition specified: none; Batch job submission failed"):
        main(["one_node", "--config", str(config), *TWO_RANKS, "--partition=none"])
    assert not (tmp_path / "run").exists()


def test_submission_holds_code_and_resolved_configuration(slurm, config, tmp_path, capsys):
    main(["many_nodes", "--config", str(config), "train.steps=5", *TWO_RANKS, "--hold"])
    main(["many_nodes", "--config", str(config), *TWO_RANKS, "--hold"])
    first, second = tmp_path / "run" / "submissions" / "001", tmp_path / "run" / "submissions" / "002"
    assert load_config(first / "1.yaml") == load_config(config, ["train.steps=5"])
    assert load_config(second / "1.yaml") == load_config(config)
    for file in ("pretrain/errors.py", "perceiver_ar/models/perceiver_ar.py", "slurm/job.sh"):
        assert (first / file).read_bytes() == (ROOT / file).read_bytes()
    said = capsys.readouterr().out
    number = said.split()[1].rstrip(":")
    assert said.startswith(f"job {number}: 1 run, 2 ranks\n")
    job = slurm.job(number)
    assert job["StdOut"] == str(tmp_path / "run" / f"slurm-{number}.log")
    assert (job["Requeue"], job["NumNodes"], job["NumTasks"]) == ("1", "2-2", "2")


def test_tasks_of_a_sweep_have_run_directories(slurm, config, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text(f"optimizer.lr=1e-3\n# between\nrun.dir={tmp_path}/other optimizer.lr=2e-3\n")
    main(["sweep", "--config", str(config), "--sweep", str(tmp_path / "lines.txt"), *TWO_RANKS, "--hold"])
    submission = tmp_path / "run" / "submissions" / "001"
    assert (submission / "runs").read_text() == f"{tmp_path}/run/1\n{tmp_path}/other\n"
    assert [load_config(submission / f"{task}.yaml").optimizer.lr for task in (1, 2)] == [1e-3, 2e-3]
    assert capsys.readouterr().out.startswith("job ")
