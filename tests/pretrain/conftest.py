import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_TESTS = Path(__file__).parent / "corpus" / "sources"


def start_ranks(arguments: Sequence[object], ranks: int) -> list[subprocess.Popen[str]]:
    """Start ``python *arguments`` as `ranks` processes of one run, output captured; one rank gets no environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=environment | ({k: str(v) for k, v in place.items()} if ranks > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish_ranks(processes: list[subprocess.Popen[str]], code: int = 0, timeout: float = 240) -> str:
    """Wait for the processes, demand exit code `code` of each; returns what they printed."""
    try:
        output = "\n".join(process.communicate(timeout=timeout)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), output
    return output


@pytest.fixture(scope="session", name="start_ranks")
def start_ranks_fixture() -> Callable[..., list[subprocess.Popen[str]]]:
    return start_ranks


@pytest.fixture(scope="session", name="finish_ranks")
def finish_ranks_fixture() -> Callable[..., str]:
    return finish_ranks


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Path]:
    """prepare(folder, texts, **fields) -> a corpus of `texts` in ``folder/shards``; fields as in its YAML file."""

    def prepare(folder: Path, texts: Sequence[str], **fields: object) -> Path:
        for i, text in enumerate(texts):
            (folder / f"{i}.txt").write_text(text)
        config = {
            "out": str(folder / "shards"),
            "sources": [{"kind": "text", "root": str(folder), "pattern": "*.txt", "licence": "none"}],
            "tokenizer": "bytes",
            "validation_fraction": 0.2,
        }
        (folder / "corpus.yaml").write_text(json.dumps(config | fields))
        command = [sys.executable, "pretrain/prepare.py", "--config", folder / "corpus.yaml"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return folder / "shards"

    return prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, prepare: Callable[..., Path]) -> Path:
    """A prepared corpus of some 40 kB of made-up text."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 7))) for _ in range(200)]
    return prepare(tmp_path_factory.mktemp("corpus"), [" ".join(rng.choices(words, k=400)) for _ in range(20)])


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, prepare: Callable[..., Path]) -> Path:
    """A second corpus: numbers instead of words."""
    rng = random.Random(1)
    texts = [" ".join(str(rng.randrange(10_000)) for _ in range(rng.randrange(5, 300))) for _ in range(40)]
    return prepare(tmp_path_factory.mktemp("digits"), texts)


@pytest.fixture(scope="session")
def mixture(corpus: Path, digits: Path) -> dict[str, Any]:
    """Fields of a run on both corpora; the weights change at step 12, behind the checkpoint of step 10."""
    return {
        "data__corpus": None,
        "data__mixture": {
            "words": {"corpus": str(corpus), "weight": {"0": 0.75, "12": 0.25}},
            "digits": {"corpus": str(digits), "weight": {"0": 0.25, "12": 0.75}},
        },
    }


@pytest.fixture(scope="session")
def write_run(corpus: Path) -> Callable[..., Path]:
    """write_run(folder, **fields) writes ``<folder>.yaml``, a tiny run into `folder`; fields as ``train__steps=3``."""

    def write(folder: Path, **fields: object) -> Path:
        run: dict[str, dict[str, object]] = {
            "run": {"dir": str(folder), "seed": 7},
            "model": {"vocab_size": 262, "max_seq_len": 48, "max_latents": 16, "num_channels": 32, "num_heads": 4},
            "data": {"corpus": str(corpus)},
            "train": {"steps": 20, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
            "optimizer": {"lr": 1e-2},
            "schedule": {"kind": "cosine", "warmup_steps": 3},
            "evaluation": {"every": 10, "windows": 4},
            "checkpoint": {"every": 10},
            "logging": {"every": 1},
        }
        run["model"] |= {"num_layers": 1, "prefix_dropout": 0.3}
        for name, value in fields.items():
            section, _, field = name.partition("__")
            run.setdefault(section, {})[field] = value
        path = folder.with_suffix(".yaml")
        path.write_text(json.dumps(run))
        return path

    return write


@pytest.fixture(scope="session")
def start_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, str]]]:
    """start_hub(root) serves the repositories in a folder as a Hub on this machine, as long as the tests run.

    Returns the environment of processes that are to use it.
    """
    with ExitStack() as servers:

        def start(root: Path) -> dict[str, str]:
            command = [sys.executable, str(SOURCE_TESTS / "hub_server.py"), str(root)]
            server = servers.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            servers.callback(server.kill)
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            home = str(tmp_path_factory.mktemp("hf-home"))
            return os.environ | {"HF_ENDPOINT": url, "HF_HOME": home, "PYTHONPATH": str(ROOT)}

        yield start


@pytest.fixture(scope="session")
def read_sources() -> Callable[..., dict[str, Any]]:
    """read_sources({name: source}, environment, folder): what each holds, or its error.

    They are read in `folder` by a process that must print nothing else.
    """

    def read(sources: dict[str, Any], environment: dict[str, str], folder: Path = ROOT) -> dict[str, Any]:
        process = subprocess.run(
            [sys.executable, str(SOURCE_TESTS / "read_sources.py")],
            cwd=folder,
            env=environment,
            input=json.dumps(sources),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (process.returncode, process.stderr) == (0, "")
        return json.loads(process.stdout)

    return read
