import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.pretrain.hub.server import TOKEN, HubServer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """Of processes that are to use the Hub."""
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own


@pytest.fixture
def use_hub(hub: HubServer, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process too: the client has read its environment long ago."""
    monkeypatch.setenv("HF_TOKEN", environment["HF_TOKEN"])
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", environment["HF_HOME"] + "/token")


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start("-m", "pretrain.hub", ...): a Python process of the project that uses the Hub."""
    processes = []

    def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def end() -> Callable[..., str]:
    """end(process, code): what it has printed until it ended with that exit code; never the token."""

    def end(process: subprocess.Popen[str], code: int = 0) -> str:
        output = process.communicate(timeout=200)[0]
        assert process.returncode == code, output
        assert TOKEN not in output
        return output

    return end


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder(name, path=content, ...): a folder as an export writes it, with other or more files."""

    def make(name: str = "export", **files: bytes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        own = {"README.md": b"---\nlibrary_name: transformers\n---\n", "config.json": b"{}"}
        for path, content in (own | {"model.safetensors": bytes(range(256)) * 1000} | files).items():
            (folder / path).write_bytes(content)
        return folder

    return make
