"""Files of ``torch.save`` from anywhere, read without executing anything from them.

A pickle is a program that may call whatever it names. Here it can name tensors, their storages and ordered
dictionaries; every other name stands for a class that keeps what it is given and does nothing.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def load_pickle(path: Path) -> Any:
    """What ``torch.save`` has written to `path`: tensors as `StoredTensor`, foreign objects as `StandIn`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file (since torch 1.6 they are zip files), or damaged.
    """
    try:
        archive = ZipFile(path)
        [program] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(program) as file:
            return _Unpickler(file, archive, program.removesuffix("data.pkl")).load()
    except OSError:
        raise
    except BadZipFile:
        raise ValueError(f"{path}: is not a file that torch.save has written, or is cut off") from None
    except Exception as error:  # a damaged or hostile program can fail in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{path}: is not a file that torch.save has written, or is damaged ({reason})") from None


class StandIn(dict):
    """In place of an object of an unknown class: its attributes or items, where it has them by name."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # a pair where the class has slots
            if isinstance(part, dict):
                self.update(part)

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _Storage(NamedTuple):
    archive: ZipFile
    record: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, of which nothing has been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Raises ValueError where the file is damaged."""
        archive, record, dtype, _ = self.storage
        try:
            if archive.getinfo(record).compress_type != ZIP_STORED:
                raise ValueError("it is compressed")
            stored = torch.frombuffer(bytearray(archive.read(record)), dtype=dtype)
            return stored.as_strided(self.shape, self.stride, self.offset)
        except (KeyError, TypeError, ValueError, RuntimeError, BadZipFile) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{archive.filename}: {record} cannot be read: {reason}") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _stored_tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        return known.get((module, name)) or type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a tensor has elements of unknown type {dtype}")
        return _Storage(self._archive, f"{self._root}data/{key}", dtype, length)


def _stored_tensor(
    storage: _Storage, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any
) -> StoredTensor:
    if math.prod(shape) > storage.length:
        raise ValueError(f"a tensor of shape {tuple(shape)} has {storage.length} elements")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data
