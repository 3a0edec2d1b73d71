"""Preparing that is killed, stopped or fails goes on where it was, and ends with what an undisturbed run writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import WorkSizes, prepare_corpus
from pretrain.errors import BAD_INPUT, STOPPED, InputError
from pretrain.schema import validate

WORKER = Path(__file__).with_name("prepare_worker.py")
SIZES = WorkSizes(run=8_000, bucket=30_000, process=1)
SOURCES = 12
PHASES = {"reading": "collected/[!.]*.done", "tokenizing": "*/tokenized/[!.]*.done", "writing": "*/[!.]*-*.done"}
"""Where the results of finished units appear; those that begin with a dot are being written."""
WRITTEN = 1_000_000_000


class Workplace:
    """A folder with sources, the same ones in every test, and processes that prepare them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.partial = folder / ".corpus.partial"
        self.started: list[subprocess.Popen[str]] = []
        rng = random.Random(0)
        for number in range(SOURCES):
            texts = [" ".join(rng.choices(("one", "two", "zwölf"), k=rng.randint(1, 300))) for _ in range(60)]
            self.write_source(number, [*texts, "a copy"])
        sources = [{"kind": "jsonl", "root": ".", "pattern": f"{number}.jsonl"} for number in range(SOURCES)]
        self.config = {"out": "corpus", "sources": sources, "validation_fraction": 0.2, "shard_mib": 2**-6}
        (folder / "c.yaml").write_text(json.dumps(self.config))

    def write_source(self, number: int, texts: list[str]) -> None:
        path = self.folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        os.utime(path, (WRITTEN, WRITTEN))

    def start(self, *overrides: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), "--config", "c.yaml", *overrides],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.started.append(process)
        return process

    def freeze(self, phase: str, units: int) -> subprocess.Popen[str]:
        """Start preparing with two workers, and stop all of its processes where so many units are finished."""
        process = self.start("processes=2")
        while self.finished(phase) < units and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGSTOP)
        assert process.poll() is None and not (self.folder / "corpus").exists()
        return process

    def kill(self, phase: str, units: int) -> None:
        """Start preparing, and kill all of its processes where so many units are finished."""
        process = self.freeze(phase, units)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def finish(self, **fields: object) -> str:
        """Prepare to the end, in this process; returns what is said."""
        config = validate(PrepareConfig, {**self.config, "processes": 1, **fields})
        said = io.StringIO()
        with chdir(self.folder):
            prepare_corpus(config, Console(file=said), SIZES)
        assert not self.partial.exists()
        return said.getvalue()

    def finished(self, phase: str) -> int:
        """How many units of a phase are."""
        with suppress(FileNotFoundError):  # a folder that is removed while it is looked through
            return len(list(self.partial.glob(PHASES[phase])))
        return 0

    def units(self) -> dict[str, int]:
        """When the finished units were finished."""
        return {str(path): path.stat().st_mtime_ns for path in self.partial.rglob("[!.]*.done")}

    def corpus(self, out: str = "corpus") -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.folder / out).iterdir()}


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path)
    yield place
    for process in place.started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    place.finish()
    return place.corpus()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]


def alive(worker: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return worker.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_repeatedly(workplace: Workplace, rng: random.Random, phases: list[str]) -> None:
    """Kill one attempt after the other, each somewhere in the next of the phases; nothing finished is done again."""
    for phase in phases:
        before = workplace.units()
        workplace.kill(phase, workplace.finished(phase) + rng.randint(1, 3))
        after = workplace.units()
        assert {path: time for path, time in after.items() if path in before}.items() <= before.items()
        assert workplace.finished(phase) > 0


def test_killed_in_every_phase(workplace, undisturbed):
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    kill_repeatedly(workplace, random.Random(seed), ["reading", "tokenizing", "tokenizing", "writing"])
    said = workplace.finish()
    assert "writing: resumed, " in said and "reading" not in said
    assert workplace.corpus() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_very_often(workplace, undisturbed, seed):
    kill_repeatedly(workplace, random.Random(seed), ["reading"] * 3 + ["tokenizing"] * 4 + ["writing"] * 5)
    workplace.finish(processes=4)
    assert workplace.corpus() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(workplace, undisturbed, seed):
    rng = random.Random(seed)
    for _ in range(6):
        process = workplace.start("processes=2")
        time.sleep(rng.uniform(0.3, 3))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    workplace.finish()
    assert workplace.corpus() == undisturbed


def test_the_parent_killed_takes_its_workers_with_it(workplace):
    process = workplace.freeze("tokenizing", 1)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    os.killpg(process.pid, signal.SIGCONT)
    process.communicate()
    wait_until(lambda: not any(map(alive, workers)))


def test_a_killed_worker_is_one_line(workplace, undisturbed):
    process = workplace.freeze("tokenizing", 1)
    [victim, other] = workers_of(process)
    victim.kill()
    os.killpg(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT
    kept, error = [line for line in errors.splitlines() if not line.startswith(tuple(PHASES))]
    assert kept == f"work so far is kept in {workplace.partial}; run again to go on"
    assert error.startswith(f"error: processes: worker {victim.pid} was killed (SIGKILL)")
    assert not alive(other)
    assert "reading: resumed, 12 of 12 units are finished" in workplace.finish()
    assert workplace.corpus() == undisturbed


def test_ctrl_c_stops_at_once_and_keeps_the_work(workplace):
    process = workplace.freeze("tokenizing", 1)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    os.killpg(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == STOPPED
    assert [line for line in errors.splitlines() if not line.startswith(tuple(PHASES))] == [
        f"work so far is kept in {workplace.partial}; run again to go on",
        "stopped",
    ]
    assert not any(map(alive, workers)) and workplace.units()


def test_only_what_changed_is_read_again(workplace):
    workplace.kill("tokenizing", 3)
    workplace.write_source(5, ["quite", "another", "content"])
    said = workplace.finish()
    assert "reading: resumed, 11 of 12 units are finished" in said and "tokenizing: resumed" not in said
    workplace.finish(out="undisturbed")
    assert workplace.corpus() == workplace.corpus("undisturbed")


def test_another_configuration_keeps_what_was_read(workplace):
    workplace.kill("tokenizing", 3)
    said = workplace.finish(deduplicate=False)
    assert "reading: resumed, 12 of 12 units" in said and "tokenizing: resumed" not in said
    workplace.finish(out="undisturbed", deduplicate=False)
    assert workplace.corpus() == workplace.corpus("undisturbed")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_halfway_keeps_what_is_finished(workplace, undisturbed, processes):
    good = [json.loads(line)["text"] for line in (workplace.folder / "7.jsonl").read_text().splitlines()]
    with (workplace.folder / "7.jsonl").open("a") as file:
        file.write("no JSON\n" + " " * 100_000)  # the largest is read first
    for number in (0, 1):
        with (workplace.folder / f"{number}.jsonl").open("a") as file:
            file.write("\n" * 200_000)
    process = workplace.start(f"processes={processes}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT
    kept, error = [line for line in errors.splitlines() if not line.startswith("reading: ")]
    assert kept == f"work so far is kept in {workplace.partial}; run again to go on"
    assert error.startswith("error: 7.jsonl:62: not a JSON object")
    workplace.write_source(7, good)
    said = workplace.finish()
    assert "reading: resumed, " in said
    fixed = workplace.corpus()
    assert {name for name in fixed if fixed[name] != undisturbed[name]} == {"manifest.json"}  # sizes of files are in it


def test_work_that_a_failing_machine_has_lost_is_done_again(workplace, undisturbed):
    workplace.kill("tokenizing", 3)
    cut, *_, last = sorted(workplace.partial.glob("collected/*.text"))
    os.truncate(cut, cut.stat().st_size - 1)
    last.with_name(f"{last.name.partition('-')[0]}.done").write_text("")
    for path in workplace.partial.glob(PHASES["tokenizing"]):
        path.with_name(f"{path.stem}-train.ids").unlink()
    said = workplace.finish()
    assert "reading: resumed, 10 of 12 units" in said and "tokenizing: resumed" not in said
    assert workplace.corpus() == undisturbed


def test_a_flipped_bit_in_the_work_is_refused(workplace):
    workplace.kill("reading", SOURCES)
    path = sorted(workplace.partial.glob("collected/*.text"))[3]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    process = workplace.start("processes=1")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT and not (workplace.folder / "corpus").exists()
    assert errors.splitlines()[-1] == f"error: {path}: damaged; remove the folder {path.parent} and prepare again"


@pytest.mark.parametrize("phase", ["tokenizing", "writing"])
@pytest.mark.parametrize("suffix", ["tokens", "documents", "ids"])
def test_a_flipped_bit_in_the_tokens_is_refused(workplace, undisturbed, phase, suffix):
    """After a failure of the machine, files have their size and zeros in them."""
    workplace.kill(phase, 3 if phase == "tokenizing" else 1)
    finished = sorted(workplace.partial.glob(PHASES["tokenizing"]))
    path = finished[-1].with_name(f"{finished[-1].stem}-train.{suffix}")
    path.write_bytes(bytes(path.stat().st_size))
    process = workplace.start("processes=2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT and not (workplace.folder / "corpus").exists()
    assert errors.splitlines()[-1] == f"error: {path}: damaged; remove the folder {path.parent} and prepare again"
    shutil.rmtree(path.parent)
    workplace.finish()
    assert workplace.corpus() == undisturbed


def test_an_index_with_zeros_in_it_is_refused(workplace):
    workplace.kill("reading", SOURCES)
    path = sorted(workplace.partial.glob("collected/*.index"))[3]
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path.with_suffix('.text')}: damaged"):
        workplace.finish()
    assert not (workplace.folder / "corpus").exists()


class Slow(BaseHTTPRequestHandler):
    """Serves 1.jsonl, 2.jsonl, ..., a byte a time."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with suppress(OSError):
            while self.command == "GET":
                self.wfile.write(b" ")
                time.sleep(0.02)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_copies_of_remote_files_do_not_stay(workplace, tmp_path_factory, monkeypatch, processes, end):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    url = f"http://127.0.0.1:{server.server_port}"
    pattern = "{kind: jsonl, root: '" + url + "', pattern: [1.jsonl, 2.jsonl], revision: '%d'}"
    sources = ", ".join(pattern % number for number in range(2))
    process = workplace.start(f"processes={processes}", f"sources=[{sources}]")

    def copies() -> list[Path]:
        return [path for folder in (temporary, workplace.partial) for path in folder.rglob("copy.jsonl")]

    wait_until(lambda: len(copies()) == processes)
    os.killpg(process.pid, end)
    process.communicate(timeout=5)
    server.shutdown()
    server.server_close()
    if end == signal.SIGKILL:
        assert len(copies()) == processes
        workplace.finish()
    assert list(temporary.iterdir()) == [] and not workplace.partial.exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_line(workplace, processes):
    def no_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = workplace.start(f"processes={processes}", preexec_fn=no_space)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == BAD_INPUT
    *others, error = [line for line in errors.splitlines() if not line.startswith(tuple(PHASES))]
    assert error.startswith("error: ") and "File too large" in error and ".corpus.partial" in error
    assert others == [f"work so far is kept in {workplace.partial}; run again to go on"]
