"""Runs that upload while they train."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from pretrain.hub.record import read_uploads
from tests.pretrain.hub.server import TOKEN, Fault, HubServer

pytestmark = pytest.mark.slow

REPO = "me/model"
RUN = {
    "hub__repo": REPO,
    "hub__every": 10,
    "hub__final_wait": 120,
    "checkpoint__every": 5,
    "checkpoint__keep": 3,
    "checkpoint__keep_best": False,
    "evaluation__every": 0,
}

LOGITS = """
import sys, torch, perceiver_ar.hf
from transformers import AutoModelForCausalLM, AutoTokenizer
from pretrain.trained_model import TrainedModel
ids = AutoTokenizer.from_pretrained(sys.argv[1], revision=sys.argv[2])("some text " * 4, return_tensors="pt").input_ids
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision=sys.argv[2])
expected = TrainedModel.find(__import__("pathlib").Path(sys.argv[3])).hf_model()
with torch.no_grad():
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0, atol=0)
"""


def test_a_run_gets_to_a_failing_hub_and_back(hub: HubServer, tmp_path: Path, write_run, start, end) -> None:
    hub.multipart = 20_000
    hub.faults = [
        Fault("PUT /storage", 503, 2),
        Fault("PUT /storage", "cut"),
        Fault("POST /api/models/me/model/commit", 500, 2),
        Fault("POST /api/models/me/model/commit", "lost"),
        Fault("POST /api/repos/create", 429, headers={"Retry-After": "1"}),
    ]
    run = tmp_path / "run"
    output = end(start("pretrain/train.py", "--config", write_run(run, **RUN)))
    assert not any(fault.times for fault in hub.faults)
    assert set(hub.repositories[REPO].branches) == {"main", "step-10", "step-20"}
    assert 1 <= output.count("warning: hub: ") <= 2  # of four failed attempts in a row or two
    uploads = read_uploads(run)
    assert {upload.revision for upload in uploads} == {"main", "step-10", "step-20"}
    assert sorted(path.name for path in (run / "hub").iterdir()) == ["run.lock", "uploads.json"]
    for revision in ("step-20", "main"):
        end(start("-c", LOGITS, REPO, revision, run))
    for path in run.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_an_unreachable_hub_holds_up_neither_a_run_nor_its_end(
    hub: HubServer, tmp_path: Path, write_run, start, end
) -> None:
    hub.faults = [outage := Fault("POST", 503, times=1 << 30)]
    run = tmp_path / "run"
    endless = {"train__steps": 10**6, "checkpoint__every": 10, "logging__every": 100}
    config = write_run(run, **(RUN | endless))
    training = start("pretrain/train.py", "--config", config)
    deadline = time.monotonic() + 120
    while not list((run / "hub").glob("step-*")):
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [uploads] = psutil.Process(training.pid).children()
    training.send_signal(signal.SIGTERM)
    output = end(training, 75)
    assert "waiting for the uploads" not in output
    uploads.wait(5)
    outage.times = 0
    last = int(output.split("stopped on request after step ")[1].split(":")[0]) + 10
    output = end(start("pretrain/train.py", "--config", config, f"train.steps={last}"))
    assert f"hub             main uploaded: {hub.url}/{REPO}/tree/main" in output
    assert f"step-{last}" in hub.repositories[REPO].branches
    assert not list((run / "hub").glob("step-*"))
