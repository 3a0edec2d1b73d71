"""Files of torch.save are read without executing what they say."""

import dataclasses
import os
import pickle
import subprocess
import time
import zipfile
from collections import OrderedDict

import pytest
import torch

from perceiver_ar.convert.pickles import StandIn, StoredTensor, load_pickle
from perceiver_ar.convert.sources import open_source


class Call:
    """Unpickled in the usual way, calls `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def hostile(marker):
    touch = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "exec": Call(exec, touch),
        "eval": Call(eval, touch),
        "open": Call(open, str(marker), "w"),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "torch.save": Call(torch.save, {}, str(marker)),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_nothing_is_called(name, tmp_path):
    marker, file = tmp_path / "executed", tmp_path / "file.ckpt"
    torch.save({"weights": torch.ones(2), "hyper_parameters": {"bad": hostile(marker)[name]}}, file)
    loaded = load_pickle(file)
    assert not marker.exists()
    assert isinstance(loaded["hyper_parameters"]["bad"], StandIn)
    assert loaded["weights"].read().tolist() == [1, 1]
    torch.load(file, weights_only=False)  # what is usually done with it
    wait_until(marker.exists)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_calling_what_was_made_is_refused(tmp_path):
    """``getattr(os, "system")("...")`` as a program: its result is an inert object, which cannot be called."""
    marker = tmp_path / "executed"
    program = b"\x80\x02cbuiltins\ngetattr\ncos\nX\x06\x00\x00\x00system\x86R"
    program += pickle.dumps(f"touch {marker}", 2)[2:-1].split(b"q")[0] + b"\x85R."
    with zipfile.ZipFile(tmp_path / "file.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(ValueError, match=r"file\.ckpt: is not a file that torch\.save has written, or is damaged"):
        load_pickle(tmp_path / "file.ckpt")
    assert not marker.exists()


def test_a_hostile_weight_is_refused(tmp_path, text_model, write_folder):
    folder = write_folder(text_model, "bin")
    torch.save(
        {"backend_model.out_norm.weight": Call(os.system, f"touch {tmp_path / 'x'}")},
        folder / "pytorch_model-00001-of-00002.bin",
    )
    with pytest.raises(ValueError, match=r"backend_model\.out_norm\.weight is no plain tensor"):
        open_source(folder).weights()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_of_all_kinds(dtype, tmp_path):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    saved = OrderedDict(
        whole=base, view=base[1:, ::2], turned=base.T, parameter=torch.tensor(3).to(dtype), empty=base[:0]
    )
    if dtype.is_floating_point:
        saved["parameter"] = torch.nn.Parameter(base)
    torch.save(saved, tmp_path / "file")
    loaded = load_pickle(tmp_path / "file")
    assert list(loaded) == list(saved)
    for name, tensor in saved.items():
        stored = loaded[name]
        assert isinstance(stored, StoredTensor) and stored.shape == tuple(tensor.shape)
        assert stored.read().dtype == dtype and torch.equal(stored.read(), tensor.detach())


def test_a_tensor_cannot_be_larger_than_its_elements(tmp_path):
    torch.save({"bomb": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "file")
    with pytest.raises(ValueError, match="a tensor of shape"):
        load_pickle(tmp_path / "file")


@pytest.mark.parametrize("wrong", [{"shape": (1.5,)}, {"shape": (2**70,)}, {"stride": ("a",)}, {"offset": "x"}])
def test_a_tensor_of_nonsense_is_one_line(wrong, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "file")
    stored = dataclasses.replace(load_pickle(tmp_path / "file")["a"], **wrong)
    with pytest.raises(ValueError, match=r"^[^\n]*/file: file/data/0 cannot be read: [^\n]*$"):
        stored.read()


def test_damage_is_found(tmp_path):
    file = tmp_path / "file"
    torch.save({"a": torch.arange(10_000.0)}, file)
    content = bytearray(file.read_bytes())
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="or is cut off"):
        load_pickle(file)
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        load_pickle(file)["a"].read()
