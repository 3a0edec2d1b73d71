"""What all commands do alike."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("characters", [1, 10**6])
def test_output_that_nobody_reads_to_its_end_is_no_error(characters):
    code = f"from pretrain.errors import run_command; run_command(lambda _: print('x' * {characters}) or 0)"
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait(60) == 141  # what a shell says of a command that SIGPIPE has ended
