import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TALKER = """
import resource, sys
from pretrain.output import keep_going_without_output
keep_going_without_output()
print("first", flush=True)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
for number in range(2000):
    print("cannot be written", number)
    print("warning", number, file=sys.stderr, flush=True)
sys.stdout.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print("last", flush=True)
open(sys.argv[1], "w").write("did not fail")
"""


def talk(done: Path, **streams: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", TALKER, str(done)], cwd=ROOT, text=True, **streams)


def test_output_to_a_full_disk_is_lost_and_comes_back(tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert talk(tmp_path / "done", stdout=log, stderr=log).wait(60) == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "first" and lines[-1].endswith("last")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_stops_nothing(tmp_path, stream):
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: subprocess.PIPE}
    process = talk(tmp_path / "done", **streams)
    getattr(process, stream).close()
    process.wait(60)
    assert (tmp_path / "done").exists()
