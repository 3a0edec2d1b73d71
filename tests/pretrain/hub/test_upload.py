"""A folder gets to a revision whole, whatever the Hub does meanwhile, and nothing is sent twice."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from pretrain.errors import InputError
from pretrain.hub import upload
from pretrain.hub.upload import HubUnavailable, attempt_upload, make_repository, upload_folder
from tests.pretrain.hub.server import TOKEN, Fault, HubServer

pytestmark = pytest.mark.usefixtures("use_hub")

REPO = "me/model"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0.0, 0.0))


def send(folder: Path, revision: str = "main", upload: Callable[..., str] = upload_folder) -> str:
    return upload(folder, REPO, revision, private=True, message="Step 20")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on_hub(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    files = hub.repositories[REPO].files(revision)
    assert files is not None
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def sent_twice(hub: HubServer) -> list[str]:
    return [oid for oid, content in hub.objects.items() if hub.received[oid] > len(content)]


def test_a_revision_holds_the_folder_and_others_stay(hub: HubServer, make_folder: Callable[..., Path]) -> None:
    first, second = make_folder("first"), make_folder("second", **{"model.safetensors": os.urandom(5000)})
    assert send(first, "step-10") == f"{hub.url}/{REPO}/tree/step-10"
    send(second, "step-20")
    assert on_hub(hub, "step-10") == contents(first)
    assert on_hub(hub, "step-20") == contents(second)
    assert on_hub(hub, "main") == {}
    assert hub.repositories[REPO].private


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_made_as_asked_for(hub: HubServer, private: bool) -> None:
    make_repository(REPO, private=private)
    assert hub.repositories[REPO].private is private
    make_repository(REPO, private=not private)
    assert hub.repositories[REPO].private is private


def test_shards_of_an_earlier_model_go_and_other_files_stay(hub: HubServer, make_folder: Callable[..., Path]) -> None:
    earlier = make_folder("earlier", **{"model-2.safetensors": b"2", "model.safetensors.index.json": b"{}"})
    send(earlier)
    hub.repositories[REPO].commits[-1]["notes.md"] = b"of people"
    send(folder := make_folder("later"))
    assert on_hub(hub) == contents(folder) | {"notes.md": b"of people"}


@pytest.mark.parametrize("multipart", [1 << 62, 100_000])
def test_what_is_there_is_not_sent_again(hub: HubServer, make_folder: Callable[..., Path], multipart: int) -> None:
    hub.multipart = multipart
    folder = make_folder()
    send(folder, "step-20")
    commits = len(hub.repositories[REPO].commits)
    send(folder, "step-20")
    assert len(hub.repositories[REPO].commits) == commits
    send(folder, "main")
    assert on_hub(hub, "main") == contents(folder)
    assert hub.received.total() == (folder / "model.safetensors").stat().st_size


FAULTS = {
    "create-503": Fault("POST /api/repos/create", 503),
    "branch-500": Fault("POST /api/models/me/model/branch", 500),
    "preupload-502": Fault("POST /api/models/me/model/preupload", 502),
    "batch-429": Fault("POST /me/model.git/info/lfs", 429, headers={"Retry-After": "0"}),
    "put-503": Fault("PUT /storage", 503),
    "put-expired": Fault("PUT /storage", 403),
    "put-cut": Fault("PUT /storage", "cut"),
    "put-lost": Fault("PUT /storage", "lost"),
    "commit-500": Fault("POST /api/models/me/model/commit", 500),
    "commit-429": Fault("POST /api/models/me/model/commit", 429, headers={"Retry-After": "1"}),
    "commit-cut": Fault("POST /api/models/me/model/commit", "cut"),
    "commit-lost": Fault("POST /api/models/me/model/commit", "lost"),
}


WHOLE, IN_PARTS = 1 << 62, 100_000
CASES = [*((fault, WHOLE) for fault in FAULTS), ("put-503", IN_PARTS), ("put-cut", IN_PARTS)]


@pytest.mark.parametrize(("fault", "multipart"), CASES)
def test_faults_pass(hub: HubServer, make_folder: Callable[..., Path], fault: str, multipart: int) -> None:
    hub.multipart = multipart
    hub.faults = [injected := Fault(**vars(FAULTS[fault]))]
    send(folder := make_folder(), "step-20")
    assert injected.times == 0
    assert on_hub(hub, "step-20") == contents(folder)
    assert len(hub.repositories[REPO].commits) == 2
    if not fault.startswith("put"):
        assert not sent_twice(hub)


def test_a_commit_that_fails_again_and_again_costs_no_bytes(hub: HubServer, make_folder: Callable[..., Path]) -> None:
    hub.faults = [Fault("POST /api/models/me/model/commit", 500, times=3)]
    with pytest.raises(
        HubUnavailable, match=r"^me/model: the Hub cannot take it now \(500, injected for Bearer \*\*\*\)"
    ):
        send(folder := make_folder())
    send(folder)
    assert on_hub(hub) == contents(folder)
    assert not sent_twice(hub)


def test_the_hub_says_how_long_to_wait(hub: HubServer, make_folder: Callable[..., Path]) -> None:
    hub.faults = [Fault("POST /api/models/me/model/commit", 429, headers={"Retry-After": "17"})]
    with pytest.raises(HubUnavailable) as caught:
        send(make_folder(), upload=attempt_upload)
    assert caught.value.wait == 17


REFUSALS = {
    401: r"me/model: the Hub does not accept the token \(401, .*\): set HF_TOKEN, or run `hf auth login`",
    403: r"me/model: the token may not write there \(403, .*\): it needs write access",
    404: r"me/model: is not there, or the token may not see it \(404, .*\)",
    413: r"me/model: the Hub refuses the upload \(413, .*\)",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_one_line_and_final_without_the_token(
    hub: HubServer, make_folder: Callable[..., Path], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults = [Fault("POST /api/models/me/model/commit", status, times=9)]
    with pytest.raises(InputError, match=f"^{REFUSALS[status]}$") as caught:
        send(make_folder())
    assert not isinstance(caught.value, HubUnavailable)
    assert hub.count("POST /api/models/me/model/commit") == 1
    assert TOKEN not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "***" in str(caught.value)


def test_a_wrong_token_is_refused(make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_NotTheRightOne")
    with pytest.raises(InputError, match=r"^me/model: the Hub does not accept the token \(401, Invalid credentials"):
        send(make_folder())


def test_no_token_is_said_before_anything_is_asked(
    hub: HubServer, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"^no token .*: set HF_TOKEN, or run `hf auth login`$"):
        send(make_folder())
    assert not hub.requests


def test_a_hub_out_of_reach_is_one_line(
    hub: HubServer, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailable, match=r"^me/model: the Hub cannot be reached: .*refused"):
        send(make_folder())


def test_offline_mode_is_no_outage(
    hub: HubServer, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^me/model: HF_HUB_OFFLINE is set: unset it to upload$") as caught:
        send(make_folder())
    assert not isinstance(caught.value, HubUnavailable)
    assert not hub.requests


def test_a_hub_that_falls_silent_is_given_up(
    hub: HubServer, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "SILENCE_SECONDS", 0.2)
    upload._set_up_client.cache_clear()
    try:
        with hub.lock, pytest.raises(HubUnavailable, match="timed out"):
            make_repository(REPO, private=True)
    finally:
        upload._set_up_client.cache_clear()


def test_a_token_that_no_header_can_hold_is_told_at_once(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(InputError, match=r"^the token for the Hugging Face Hub is not ASCII") as error:
        send(make_folder())
    assert not isinstance(error.value, HubUnavailable)
