"""Checkpoints of a run reach the Hub however long it is away, in a bounded folder, with few words."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load

from pretrain import status
from pretrain.checkpoint import checkpoint_path, latest_checkpoint, load_weights
from pretrain.config import HubSection
from pretrain.errors import InputError, Unavailable
from pretrain.hub import uploader
from pretrain.hub.outbox import Outbox
from pretrain.hub.record import read_uploads, wanted
from pretrain.hub.uploader import Uploader
from pretrain.outcome import next_attempt, write_outcome
from tests.pretrain.hub.server import Fault, HubServer
from tests.pretrain.stored_run import store_run

pytestmark = pytest.mark.usefixtures("use_hub")

REPO = "me/model"
COMMIT = "POST /api/models/me/model/commit"
SECTION = HubSection(repo=REPO, every=10)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        ([5, 10, 15, 20, 25], 10, {10, 20}),
        ([5, 10, 15, 20, 25, 30], 10, {10, 20, 30}),
        ([4, 8, 12, 16, 20, 24], 10, {12, 20}),
        ([12, 13, 19], 10, {12}),
        ([25, 30], 10, {25, 30}),
        ([10, 20, 30], 0, {30}),
        ([10, 20, 28], 0, set()),
        ([7, 30], 100, {30}),
        ([], 10, set()),
    ],
)
def test_the_first_checkpoint_at_or_after_each_multiple_is_wanted_and_the_last(
    steps: list[int], every: int, expected: set[int]
) -> None:
    assert wanted(steps, every, last=30) == expected


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(uploader, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    """With checkpoints of steps 10 and 20."""
    return store_run(tmp_path / "run", {"corpus": str(corpus)})


@pytest.fixture
def open_uploader(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Uploader]:
    """open_uploader(last_step=..., field=...): a new one for the run, as if the one before had been killed."""
    # Within one process the lock would keep the successor out until the end.
    monkeypatch.setattr("pretrain.hub.outbox.hold_run", lambda folder: folder.mkdir(exist_ok=True))

    def open_uploader(last_step: int = 40, **fields: object) -> Uploader:
        return Uploader(Outbox(run, SECTION.model_copy(update=fields), last_step))

    return open_uploader


def tend(uploader: Uploader, until: Callable[[], bool] | None = None) -> None:
    """Until nothing is left to do, or that holds."""
    deadline = time.monotonic() + 60
    while uploader.tend() if until is None else not (uploader.tend() and until()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def folders(run: Path) -> set[str]:
    return {path.name for path in (run / "hub").iterdir() if path.is_dir()}


def branches(hub: HubServer) -> set[str]:
    return set(hub.repositories[REPO].branches)


def test_each_checkpoint_gets_a_branch_and_the_last_becomes_main(hub: HubServer, run: Path, open_uploader) -> None:
    tend(open_uploader(last_step=20))
    assert branches(hub) == {"step-10", "step-20", "main"}
    repository = hub.repositories[REPO]
    assert repository.files("main") == repository.files("step-20") != repository.files("step-10")
    for step in (10, 20):
        weights = load_weights(checkpoint_path(run, step))
        uploaded = load(repository.files(f"step-{step}")["model.safetensors"])
        assert all(uploaded[f"model.{name}"].equal(weights[name]) for name in weights)
    assert folders(run) == set()
    assert hub.received == {oid: len(content) for oid, content in hub.objects.items()}


def test_settings_reach_the_export(hub: HubServer, open_uploader) -> None:
    tend(open_uploader(dtype="bf16", with_code=True, private=False))
    files = hub.repositories[REPO].files("step-20")
    assert {str(tensor.dtype) for tensor in load(files["model.safetensors"]).values()} == {"torch.bfloat16"}
    assert any(path.endswith(".py") for path in files)
    assert not hub.repositories[REPO].private
    assert b"me/model" in files["README.md"]


def test_a_successor_sends_nothing_again(hub: HubServer, run: Path, open_uploader) -> None:
    hub.faults = [Fault(COMMIT, "lost")]
    tend(open_uploader(), until=lambda: hub.count(COMMIT) == 1)
    assert folders(run) == {"step-10", "step-20"}
    tend(open_uploader())
    received, requests = hub.received.copy(), len(hub.requests)
    tend(open_uploader())
    assert len(hub.requests) == requests
    (run / "hub" / "uploads.json").unlink()
    tend(open_uploader())
    assert hub.received == received == {oid: len(content) for oid, content in hub.objects.items()}
    assert len(hub.repositories[REPO].commits) == 3


def test_an_exported_checkpoint_may_be_deleted(hub: HubServer, run: Path, open_uploader) -> None:
    hub.faults = [Fault("POST /api/repos/create", 503, times=10)]
    tend(first := open_uploader(), until=lambda: folders(run) == {"step-10", "step-20"})
    shutil.rmtree(run / "checkpoints")
    tend(first)
    assert branches(hub) == {"step-10", "step-20", "main"}


def test_what_an_export_left_half_done_is_no_export(hub: HubServer, run: Path, open_uploader) -> None:
    for name in (".tmp-step-10", ".gone-step-5"):
        (run / "hub" / name).mkdir(parents=True)
        (run / "hub" / name / "config.json").write_text("{}")
    tend(open_uploader())
    assert branches(hub) == {"step-10", "step-20", "main"}
    assert folders(run) == set()


def test_a_long_outage_is_one_warning_and_a_bounded_folder(
    hub: HubServer, run: Path, corpus: Path, open_uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [outage := Fault("POST /api/repos/create", 503, times=1 << 30)]
    uploading = open_uploader(last_step=1000)
    for steps in ((10, 20), (30, 40), (50, 60)):
        store_run(run, {"corpus": str(corpus)}, steps)
        asked = hub.count("POST")
        tend(uploading, until=lambda since=asked: hub.count("POST") > since + 3)
    kept = folders(run)
    assert {"step-50", "step-60"} <= kept
    assert len(kept) <= uploader.MAX_WAITING + 1
    outage.times = 0
    tend(uploading)
    assert branches(hub) == kept | {"main"}
    uploaded = hub.repositories[REPO].branches
    assert uploaded["step-60"] < uploaded["step-50"]
    warnings = capsys.readouterr().err.splitlines()
    dropped = {line.split()[2] for line in warnings if "is dropped: 3 newer ones wait for the Hub already" in line}
    assert dropped == {f"step-{step}" for step in range(10, 70, 10)} - kept
    assert len(warnings) == 1 + len(dropped)
    outage_line = "warning: hub: me/model: the Hub cannot take it now (503, injected for Bearer ***); training goes on"
    assert outage_line in warnings


def test_the_next_outage_is_told_again(hub: HubServer, open_uploader, capsys: pytest.CaptureFixture[str]) -> None:
    hub.faults = [Fault(COMMIT, 500, times=2)]
    tend(uploading := open_uploader(), until=lambda: hub.count(COMMIT) == 3)
    hub.faults = [Fault(COMMIT, 500, times=2)]
    tend(uploading)
    assert capsys.readouterr().err.count("warning: hub: ") == 2


def test_old_checkpoints_wait_for_room(hub: HubServer, run: Path, open_uploader, monkeypatch) -> None:
    monkeypatch.setattr(uploader, "MAX_WAITING", 1)
    hub.faults = [outage := Fault("POST /api/repos/create", 503, times=1 << 30)]
    tend(uploading := open_uploader(), until=lambda: hub.count("POST") > 3)
    assert folders(run) == {"step-20"}
    outage.times = 0
    tend(uploading)
    assert branches(hub) == {"step-10", "step-20", "main"}


def test_a_refusal_is_told_once_and_tried_slowly(
    hub: HubServer, open_uploader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uploader, "REFUSED_PAUSE", 0.5)
    hub.token = "another"
    uploading = open_uploader()
    uploading.greet()
    began = time.monotonic()
    tend(uploading, until=lambda: hub.count("POST /api/repos/create") == 4)
    assert time.monotonic() - began > 3 * 0.5
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: hub: me/model: the Hub does not accept the token (401, ")
    assert line.endswith("; training goes on")
    hub.token = os.environ["HF_TOKEN"]
    tend(uploading)
    assert branches(hub) == {"step-10", "step-20", "main"}


def test_checkpoints_are_exported_while_the_hub_is_silent(hub: HubServer, run: Path, open_uploader) -> None:
    uploading = open_uploader()
    with hub.lock:
        uploading.greet()
        tend(uploading, until=lambda: folders(run) == {"step-10", "step-20"})
    tend(uploading)
    assert branches(hub) == {"step-10", "step-20", "main"}


def test_what_has_arrived_leaves_a_full_disk(hub: HubServer, run: Path, open_uploader, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    uploading = open_uploader()
    with monkeypatch.context() as full:
        full.setattr("pretrain.hub.outbox.write_uploads", refuse)
        tend(uploading)
    assert folders(run) == set()
    assert capsys.readouterr().err.count("could not be written down") == 2


def test_at_the_end_a_refusal_is_final_and_an_outage_is_not(hub: HubServer, open_uploader) -> None:
    hub.faults = [Fault(COMMIT, 503, times=3), Fault(COMMIT, 403)]
    uploading = open_uploader()
    uploading.finish()
    with pytest.raises(InputError, match="may not write there"):
        tend(uploading)
    assert hub.count(COMMIT) == 4


def test_a_damaged_checkpoint_is_told_once_and_the_others_go(
    hub: HubServer, run: Path, open_uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint_path(run, 20) / "rank-00000.safetensors").write_bytes(b"damaged")
    uploading = open_uploader()
    tend(uploading, until=lambda: REPO in hub.repositories and "step-10" in branches(hub))
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: hub: step-20 is not exported: ")
    assert warning.endswith("; training goes on")
    uploading.finish()
    with pytest.raises(InputError, match="step-20 is not exported"):
        tend(uploading)


def test_another_repository_gets_everything(hub: HubServer, run: Path, open_uploader) -> None:
    tend(open_uploader(last_step=20))
    tend(open_uploader(last_step=20, repo="me/other"))
    assert set(hub.repositories["me/other"].branches) == {"step-10", "step-20", "main"}
    uploads = read_uploads(run)
    assert {(upload.repo, upload.revision) for upload in uploads} == {
        (repo, revision) for repo in (REPO, "me/other") for revision in ("step-10", "step-20", "main")
    }


def test_two_at_a_time_are_kept_apart(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.run_lock.LAST_MOMENTS", 0.1)
    first = Outbox(run, SECTION, 20)
    with pytest.raises(Unavailable, match="another process uploads its checkpoints"):
        Outbox(run, SECTION, 20)
    assert first.due() == [20, 10]


def test_a_record_that_cannot_be_read_costs_no_bytes(hub: HubServer, run: Path, open_uploader) -> None:
    tend(open_uploader())
    received = hub.received.total()
    (run / "hub" / "uploads.json").write_text("{")
    tend(open_uploader())
    assert hub.received.total() == received
    assert latest_checkpoint(run) is not None


def test_status_tells_what_has_arrived_and_what_waits(
    hub: HubServer, run: Path, open_uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    write_outcome(run, next_attempt(run).with_end(0, 20, None))
    hub.faults = [Fault("POST /api/repos/create", 503, times=1 << 30)]
    tend(open_uploader(), until=lambda: len(folders(run)) == 2)
    status.main([str(run)])
    assert "step-20, step-10 wait to be uploaded" in capsys.readouterr().out
    hub.faults.clear()
    tend(open_uploader())
    status.main([str(run)])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hub ")][-1:]
    assert f"step-20 of {REPO}, " in line  # not step-10, which arrived last
    assert line.rstrip().endswith(f"{hub.url}/{REPO}/tree/step-20")
