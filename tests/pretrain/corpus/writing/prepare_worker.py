"""`pretrain/prepare.py` with its work cut so fine that little text makes many runs, buckets and busy processes."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from pretrain import prepare
from pretrain.corpus.writing.prepare import WorkSizes
from pretrain.errors import run_command

if __name__ == "__main__":
    prepare.prepare_corpus = partial(prepare.prepare_corpus, sizes=WorkSizes(run=8_000, bucket=30_000, process=1))
    run_command(prepare.main)
