import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from pretrain.config import read_config
from pretrain.errors import InputError
from pretrain.tasks import open_task
from pretrain.tasks.text_classification.config import DataSection
from pretrain.tasks.text_classification.examples import TextData
from pretrain.tasks.text_classification.texts import open_texts

ENCODER = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1, "layers_per_block": 1}
MODEL = {"vocab_size": 262, "max_seq_len": 24, "num_input_channels": 8, "encoder": ENCODER, "num_classes": 2}
ROWS = [("good, very good", "pos"), ("bad", "neg"), ("worse than all that was before it", "neg"), ("good", "pos")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Local files are not to leave copies in the cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_folder(root: Path, rows=ROWS, split="train") -> Path:
    for number, (text, label) in enumerate(rows):
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(text)
    return root


def write_file(path: Path, rows=ROWS) -> Path:
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    lines = [{"text": text, "label": label} for text, label in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    else:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def texts(num_classes=2, **data):
    return open_texts(DataSection(**{"validation": None, "validation_fraction": 0.4, **data}), num_classes)


def all_of(*parts):
    return sorted((part.text(i), part.classes[part.labels[i]]) for part in parts for i in range(len(part)))


def config(root, **sections):
    run = {
        "task": "text_classification",
        "run": {"dir": "unused"},
        "model": MODEL,
        "data": {"folder": str(root), "validation": "train"},
        "train": {"steps": 4, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
    }
    return read_config(run | {name: run[name] | fields for name, fields in sections.items()})


@pytest.mark.parametrize("name", ["folder", "texts.csv", "texts.jsonl", "texts.parquet"])
def test_texts_come_from_folders_and_files_and_some_are_held_out(tmp_path, name):
    if name == "folder":
        where = {"folder": write_folder(tmp_path / name)}
    else:
        where = {"dataset": str(write_file(tmp_path / name))}
    train, validation = texts(**where)
    assert all_of(train, validation) == sorted(ROWS)
    assert train.classes == validation.classes == ("neg", "pos")
    assert len(train) and len(validation)
    assert all_of(texts(**where)[1]) == all_of(validation)  # by their hashes, not by chance
    named, _ = texts(**where, labels=("pos", "neg"))
    assert all_of(named) == all_of(train) and named.labels.tolist() == (1 - train.labels).tolist()


def test_a_split_of_its_own_is_validated_on(tmp_path):
    folder = write_folder(write_folder(tmp_path / "folder"), [("fine", "pos")], "test")
    train, validation = texts(folder=folder, validation="test")
    assert all_of(train) == sorted(ROWS) and all_of(validation) == [("fine", "pos")]
    files = tmp_path / "files"
    files.mkdir()
    write_file(files / "train.csv")
    write_file(files / "test.csv", [("fine", "pos")])
    train, validation = texts(dataset=str(files), validation="test")
    assert all_of(train) == sorted(ROWS) and all_of(validation) == [("fine", "pos")]


def test_numbers_are_classes_too(tmp_path):
    path = write_file(tmp_path / "texts.parquet", [("a", 0), ("b", 1), ("c", 1), ("d", 0), ("e", 1)])
    parts = texts(dataset=str(path), labels=("even", "odd"))
    assert all_of(*parts) == [("a", "even"), ("b", "odd"), ("c", "odd"), ("d", "even"), ("e", "odd")]
    assert texts(dataset=str(path))[0].classes == ("0", "1")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ((" \n", 1), "train, row 2: the text is empty: leave the row out"),
        ((None, 1), "train, row 2: the text is empty: leave the row out"),
        (("text", 2), "train, row 2: label 2 is no class, there are 0 (no), 1 (yes)"),
        (("text", -1), "train, row 2: label -1 is no class, there are 0 (no), 1 (yes)"),
        (("text", None), "train, row 2: label None is no class, there are 0 (no), 1 (yes)"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, problem):
    path = write_file(tmp_path / "texts.jsonl", [("a", 0), ("b", 1), row])
    with pytest.raises(InputError) as error:
        texts(dataset=str(path), labels=("no", "yes"))
    assert str(error.value) == f"{path}, {problem}"


def test_a_bad_file_is_named(tmp_path):
    write_folder(tmp_path / "empty", [*ROWS, ("", "neg")])
    with pytest.raises(InputError, match=r"empty/train/neg/4.txt: the text is empty"):
        texts(folder=tmp_path / "empty")
    write_folder(tmp_path / "binary")
    (tmp_path / "binary/train/pos/x.txt").write_bytes(b"a\xff")
    with pytest.raises(InputError, match=r"binary/train/pos/x.txt: not UTF-8 text \(byte 1\)"):
        texts(folder=tmp_path / "binary")
    with pytest.raises(InputError, match=r"texts.csv, train, row 0: label 'neutral' is no class, there are 0 \(neg\)"):
        texts(dataset=str(write_file(tmp_path / "texts.csv", [("a", "neutral"), *ROWS])), labels=("neg", "pos"))


def test_what_is_no_data_is_refused(tmp_path):
    path = write_file(tmp_path / "texts.csv")
    cases = {
        r"data.folder: .* has no split 'train'": {"folder": tmp_path},
        r"data.text_column: .* has no column 'review'; there are text, label": {
            "dataset": str(path), "text_column": "review"
        },
        r"data.dataset: cannot open split 'test' of .*texts.csv: Unknown": {"dataset": str(path), "validation": "test"},
        r"data.dataset: cannot open .*gone.csv": {"dataset": str(tmp_path / "gone.csv")},
        r"model.num_classes: is 3, but .*texts.csv, train has 2 classes: neg, pos": {
            "dataset": str(path), "num_classes": 3
        },
        r"data.validation_fraction: 0.0001 of the 4 texts .* leaves nothing to validate on": {
            "dataset": str(path), "validation_fraction": 1e-4
        },
    }  # fmt: skip
    for problem, data in cases.items():
        with pytest.raises(InputError, match=problem):
            texts(**data)


def test_a_run_is_refused_for_what_is_wrong_with_it(tmp_path):
    root = write_folder(tmp_path)
    assert list(open_task(config(root)).problems(1)) == []
    too_small = config(root, model={"vocab_size": 200}, train={"global_batch": 8})
    assert list(open_task(too_small).problems(1)) == [
        "model.vocab_size: 200 is too small, tokenizer bytes has 262 ids",
        "train.global_batch: 8 is more than the 4 training texts",
    ]
    with pytest.raises(InputError, match=r"^model.freeze_encoder needs init_from: random weights would stay random$"):
        config(root, model={"freeze_encoder": True})
    with pytest.raises(InputError, match=r"^data.labels has 3 names, model.num_classes is 2$"):
        config(root, data={"labels": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"^data.labels: names a class twice: a, a$"):
        config(root, data={"labels": ["a", "a"]})
    with pytest.raises(InputError, match=r"^data: give exactly one of data.folder and data.dataset$"):
        config(root, data={"dataset": "imdb"})


def test_a_batch_is_cut_padded_and_scored_as_its_texts_alone(tmp_path):
    torch.manual_seed(0)
    run = config(write_folder(tmp_path), data={"labels": ["pos", "neg"]})
    task = open_task(run)
    objective = task.build().double().eval()
    train, validation = open_texts(run.data, 2)
    data = TextData(run, train, validation)
    assert data.describe()["labels"] == ["pos", "neg"]
    assert data.describe()["tokenizer"] == "bytes"
    batch = data._train.batch(np.arange(4), np.array([10, 11, 12, 13]))
    output = objective(batch)
    for row, (text, label) in enumerate(zip([train.text(i) for i in range(4)], train.labels, strict=True)):
        ids = torch.tensor([list(text.encode())])[:, :24] + 6
        assert batch.tensors["key_valid"][row].sum() == ids.shape[1]
        alone = F.cross_entropy(objective.model(ids), torch.tensor([label]))
        torch.testing.assert_close(output.losses[row, 0], alone.float())
    assert output.loss_sum == output.losses.sum() and output.measures == {}
    assert batch.indices.tolist() == [10, 11, 12, 13] and batch.counts.tolist() == [1] * 4
    with torch.no_grad():
        assert objective(batch).measures["accuracy"].shape == (4, 1)


def test_the_same_texts_have_the_same_fingerprint(tmp_path):
    runs = [config(write_folder(tmp_path / name, rows)) for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[:3]))]
    prints = [TextData(run, *open_texts(run.data, 2)).describe()["fingerprints"]["train"] for run in runs[:2]]
    assert prints[0] == prints[1] != open_texts(runs[2].data, 2)[0].fingerprint


def test_a_frozen_encoder_gets_no_gradients(tmp_path):
    run = config(write_folder(tmp_path), model={"freeze_encoder": True, "init_from": str(tmp_path / "x")} | MODEL)
    model = open_task(run).build().model
    trained = {name.partition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name.partition(".")[0] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert (trained, frozen) == ({"decoder", "output"}, {"encoder", "input_adapter"})
