"""A run and the process that uploads for it: how they begin, work and end together."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pretrain.config import dump_config, load_config
from pretrain.errors import InputError
from pretrain.hub.__main__ import main
from pretrain.preflight import other_run
from tests.pretrain.hub.server import TOKEN, Fault, HubServer
from tests.pretrain.stored_run import MODEL, TRAIN, store_run

PARENT = Path(__file__).with_name("uploading_parent.py")
REPO = "me/model"
EVERYTHING = {"main", "step-10", "step-20"}


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    """With checkpoints of steps 10 and 20, the last."""
    return store_run(tmp_path / "run", {"corpus": str(corpus)})


@pytest.fixture
def configure(corpus: Path, run: Path) -> Callable[..., Path]:
    """configure(field=value, ...): the YAML file of the run with such a hub section, None without one."""

    def configure(**hub: object) -> Path:
        fields = {"run": {"dir": str(run)}, "model": MODEL, "data": {"corpus": str(corpus)}, "train": TRAIN}
        (run / "config.yaml").write_text(json.dumps(fields | ({"hub": {"repo": REPO} | hub} if hub else {})))
        (run / "config.yaml").write_text(dump_config(load_config(run / "config.yaml")))
        return run / "config.yaml"

    return configure


def uploads_of(parent: subprocess.Popen[str]) -> psutil.Process:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    [uploads] = psutil.Process(parent.pid).children()
    return uploads


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_it_stays_out_of_the_runs_way(hub: HubServer, configure, start, end) -> None:
    uploads = uploads_of(parent := start(PARENT, configure(every=10), 20))
    wait_until(lambda: hub.requests)
    assert uploads.nice() == 19
    assert os.getsid(uploads.pid) == uploads.pid
    assert uploads.environ()["OMP_NUM_THREADS"] == "1"
    assert not any(TOKEN in word for word in uploads.cmdline())
    assert Path(f"/proc/{uploads.pid}/oom_score_adj").read_text() == "1000\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # sent to a whole job
        uploads.send_signal(number)
    end(parent)
    assert set(hub.repositories[REPO].branches) == EVERYTHING
    assert not uploads.is_running()


@pytest.mark.slow
def test_it_ends_with_a_run_that_is_killed_and_the_next_goes_on(hub: HubServer, configure, start, end) -> None:
    hub.multipart = 20_000
    with hub.lock:  # in the midst of a request
        uploads = uploads_of(parent := start(PARENT, configure(every=10, final_wait=100)))
        time.sleep(8)
        parent.send_signal(signal.SIGKILL)
        uploads.wait(5)
    end(start(PARENT, configure(every=10, final_wait=100), 0))
    assert set(hub.repositories[REPO].branches) == EVERYTHING


@pytest.mark.slow
def test_a_run_says_so_when_its_uploads_are_killed(configure, start, end) -> None:
    uploads = uploads_of(parent := start(PARENT, configure(every=10), 3))
    uploads.kill()
    output = end(parent)
    assert "warning: hub: the process that uploads has ended; training goes on" in output
    assert "warning: hub: not everything is uploaded" in output


@pytest.mark.slow
def test_a_run_waits_so_long_and_says_what_does_the_rest(hub: HubServer, run: Path, configure, start, end) -> None:
    hub.faults = [outage := Fault("POST", 503, times=1 << 30)]
    output = end(start(PARENT, configure(every=10, final_wait=15), 0))
    assert "hub             waiting for the uploads to me/model, 15 s at most\n" in output
    assert output.endswith(f"warning: hub: not everything is uploaded: `python -m pretrain.hub {run}` does the rest\n")
    outage.times = 0
    end(start("-m", "pretrain.hub", run))
    assert set(hub.repositories[REPO].branches) == EVERYTHING
    requests = len(hub.requests)
    assert end(start("-m", "pretrain.hub", run)) == "hub             nothing to upload to me/model\n"
    assert len(hub.requests) == requests


@pytest.mark.slow
def test_a_refusal_ends_the_wait(hub: HubServer, run: Path, configure, start, end) -> None:
    hub.token = "another"
    began = time.monotonic()
    output = end(start(PARENT, configure(every=10, final_wait=1000), 0))
    assert time.monotonic() - began < 120
    # Once as the repository is made, and once for the upload, unless the run is at its end before the first is known.
    assert output.count("warning: hub: me/model: the Hub does not accept the token (401, ") in (1, 2)
    assert "does the rest" in output
    line = end(start("-m", "pretrain.hub", run), 2)
    assert line.startswith("error: me/model: the Hub does not accept the token (401, ")
    assert line.count("\n") == 1


def test_a_run_may_go_on_with_another_hub_section(configure) -> None:
    configs = [load_config(configure(**hub)) for hub in ({}, {"every": 10}, {"repo": "me/other", "dtype": "bf16"})]
    assert [other_run(config) for config in configs] == [None, None, None]


def test_what_cannot_be_uploaded_is_one_line(run: Path, configure, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run directory, it has no config\.yaml$"):
        main([str(tmp_path)])
    configure()
    with pytest.raises(InputError, match=r"^hub\.repo: .* names no repository: add hub\.repo=owner/name$"):
        main([str(run)])
    with pytest.raises(InputError, match=r"^hub\.repo: must be owner/name, not 'model'$"):
        main([str(run), "hub.repo=model"])
    with pytest.raises(InputError, match=r"^hub\.token: unknown key"):
        main([str(run), "hub.repo=me/model", f"hub.token={TOKEN}"])
