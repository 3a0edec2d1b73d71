"""Models from the Hub, over real HTTP, each in a process of its own: huggingface_hub reads its environment once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perceiver_ar.hub import local_folder, read_architecture
from tests.pretrain.hub.server import Fault, HubServer, Repository

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "pretrain" / "corpus" / "sources" / "hub_server.py"
DOWNLOAD = """\
import sys
from perceiver_ar.hub import local_folder
try:
    print(*sorted(path.name for path in local_folder(sys.argv[1]).iterdir()))
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def download(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """download(name, **environment): the files of a model on a Hub, or the error."""
    for name, files in {
        "both": ["config.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt", "modeling.py", "README.md"],
        "pickled": ["config.json", "pytorch_model-00001-of-00002.bin", "spiece.model", "runs/events.json"],
        "code": ["modeling.py"],
        "weightless": ["config.json"],
    }.items():
        for file in files:
            path = tmp_path / "models" / "someone" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    server = subprocess.Popen([sys.executable, str(SERVER), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        hub = {"HF_ENDPOINT": server.stdout.readline().strip(), "HF_HOME": str(tmp_path / "home")}

        def run(name: str, **changed: str) -> str:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_secret"} | hub | changed
            process = subprocess.run(
                [sys.executable, "-c", DOWNLOAD, name], env=environment, cwd=tmp_path, capture_output=True, text=True
            )
            assert (process.returncode, process.stderr) == (0, "")
            return process.stdout.removesuffix("\n")

        yield run
    finally:
        server.kill()
        server.wait()


def test_what_models_need_is_downloaded_once(download: Callable[..., str]) -> None:
    files = "README.md config.json model.safetensors"
    assert download("someone/both") == files
    assert download("someone/pickled") == "config.json pytorch_model-00001-of-00002.bin spiece.model"
    assert download("someone/both", HF_ENDPOINT="http://127.0.0.1:9") == files
    assert download("someone/pickled", HF_HUB_OFFLINE="1").startswith("config.json pytorch_model")


def test_models_that_cannot_be_had(download: Callable[..., str]) -> None:
    missing = download("someone/else")
    assert missing.startswith("FileNotFoundError someone/else: no such folder, and no model on http://127.0.0.1:")
    revision = download("someone/both@step-5")
    assert revision.startswith("FileNotFoundError someone/both@step-5: ") and "no revision step-5" in revision
    unreachable = download("someone/both", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith(
        "ConnectionError someone/both: no such folder, and http://127.0.0.1:9 does not answer"
    )
    for error in (missing, revision, unreachable):
        assert "\n" not in error and "hf_secret" not in error


def test_repositories_without_a_model_are_named(download: Callable[..., str]) -> None:
    code = download("someone/code")
    assert code == "FileNotFoundError someone/code: is no model, the repository has no config.json"
    weightless = download("someone/weightless@main")
    assert weightless.startswith("FileNotFoundError someone/weightless@main: is no model, the repository has neither ")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_spoken_of(status: int, download: Callable[..., str]) -> None:
    hub = HubServer()
    try:
        hub.repositories["someone/model"] = Repository(private=False)
        hub.faults = [Fault("GET /api/models", status, times=9)]
        error = download("someone/model", HF_ENDPOINT=hub.url)
    finally:
        hub.close()
    assert error.startswith(f"PermissionError someone/model: no such folder, and {hub.url} refuses the token")
    assert f"({status})" in error and "\n" not in error and "hf_secret" not in error


def test_a_token_that_no_header_can_hold(download: Callable[..., str]) -> None:
    error = download("someone/both", HF_TOKEN="hf_sécret")
    assert error.startswith("PermissionError someone/both: the token is not ASCII") and "\n" not in error


@pytest.mark.parametrize("name", ["/no/such/folder", "too/many/parts", "one-part", "someone/model@", "a b/c"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder, and not owner/name\[@revision\]"):
        local_folder(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json: is not JSON"),
        ("[]", "config.json: must hold a JSON object"),
        (json.dumps({"model_type": "gpt2"}), "model_type must be 'perceiver-ar', not 'gpt2'"),
        (json.dumps({"model_type": "perceiver-ar"}), "vocab_size"),
        (json.dumps({"model_type": "perceiver-ar", "vocab_size": 0}), r"vocab_size \(0\) must be at least 1"),
    ],
)
def test_folders_that_hold_no_model_of_ours(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        read_architecture(local_folder(tmp_path))
