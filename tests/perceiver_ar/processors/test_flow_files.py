import struct
from pathlib import Path

import numpy as np
import pytest

from perceiver_ar.processors.flow.flo import read_flo, write_flo

FLOW = np.array([[[1.5, -2.0], [0.0, 3.25], [1e10, 1e10]]], np.float32)
# As the format's description has it, written by hand: width before height, x before y.
BYTES = struct.pack("<fii6f", 202021.25, 3, 1, *FLOW.ravel())


def test_files_are_laid_out_as_the_format_says(tmp_path: Path) -> None:
    write_flo(tmp_path / "a.flo", FLOW)
    assert (tmp_path / "a.flo").read_bytes() == BYTES
    flow = read_flo(tmp_path / "a.flo")
    assert flow.dtype == np.float32
    np.testing.assert_array_equal(flow, FLOW)
    flow[0, 0] = 0  # what is read can be worked on
    assert [path.name for path in tmp_path.iterdir()] == ["a.flo"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no .flo file, which begins with PIEH"),
        (b"PIEH", "is no .flo file, which begins with PIEH"),
        (b"RIFF" + BYTES[4:], "is no .flo file, which begins with PIEH"),
        (BYTES[:-1], "is damaged: 35 bytes do not hold a flow of 3x1 pixels"),
        (BYTES + b"\0", "is damaged: 37 bytes do not hold a flow of 3x1 pixels"),
        (struct.pack("<fii", 202021.25, 0, 1), "is damaged: 12 bytes do not hold a flow of 0x1 pixels"),
        (struct.pack("<fii6f", 202021.25, -3, -1, *FLOW.ravel()), "is damaged: .* a flow of -3x-1 pixels"),
    ],
)
def test_other_and_damaged_files_are_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "a.flo"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path}: {problem}$"):
        read_flo(path)


def test_other_shapes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^flow: must be \(H, W, 2\), not \(2, 3, 1\)$"):
        write_flo(tmp_path / "a.flo", FLOW.reshape(2, 3, 1))
    assert not list(tmp_path.iterdir())
