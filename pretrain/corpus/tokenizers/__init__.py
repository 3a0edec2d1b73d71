"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import tokenizers
import xxhash

from pretrain.errors import InputError

BYTES = "bytes"
TOKENIZER_FILE = "tokenizer.json"
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")


class Tokenizer(Protocol):
    """Ids of a text carry no special tokens; whoever writes documents puts `end_id` after each."""

    name: str
    hash: str
    vocab_size: int
    end_id: int

    @property
    def files(self) -> dict[str, bytes]:
        """What a corpus keeps of it, by file name; empty where `name` says it all."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids, int64. Bytes are UTF-8."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens have none."""


class ByteTokenizer:
    """UTF-8 bytes; id = byte + 6 behind pad 0, bos 1, eos 2, mask 3, cls 4 and sep 5, as in Perceiver IO."""

    specials = 6
    name = BYTES
    vocab_size = 256 + specials
    end_id = 2
    files: ClassVar[dict[str, bytes]] = {}
    hash = xxhash.xxh64_hexdigest(f"{BYTES}: id = byte + {specials}, end {end_id}".encode())

    def encode(self, text: str | bytes) -> np.ndarray:
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, dtype=np.uint8).astype(np.int64) + self.specials

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, dtype=np.int64)
        return (ids[ids >= self.specials] - self.specials).astype(np.uint8).tobytes().decode(errors="replace")


class HuggingFaceTokenizer:
    """A fast tokenizer of the `tokenizers` library; its identity is its serialisation."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str, end_id: int):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # A document that spells out "<|endoftext|>" contains that text, not the end of a document.
        tokenizer.encode_special_tokens = True
        self.name = name
        serialised = tokenizer.to_str().encode()
        self.files = {TOKENIZER_FILE: serialised}
        self.hash = xxhash.xxh64_hexdigest(serialised)
        # Ids may have gaps, and the embedding must hold the largest one.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.end_id = end_id
        self._tokenizer = tokenizer

    def encode(self, text: str | bytes) -> np.ndarray:
        text = text if isinstance(text, str) else text.decode()
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids, dtype=np.int64).tolist(), skip_special_tokens=True)


def load_tokenizer(name: str, end_token: str | None = None) -> Tokenizer:
    """Load "bytes", a `tokenizer.json` (or the folder it lies in), or a tokenizer of the Hugging Face Hub.

    Raises:
        InputError: there is none, it cannot be read, or it has no end token.
    """
    if name == BYTES:
        if end_token is not None:
            raise InputError("end_token: the tokenizer 'bytes' has its own end token; leave the field out")
        return ByteTokenizer()
    tokenizer = _read_tokenizer(name)
    candidates = END_TOKENS if end_token is None else (end_token,)
    for candidate in candidates:
        if (end_id := tokenizer.token_to_id(candidate)) is not None:
            return HuggingFaceTokenizer(tokenizer, name, end_id)
    raise InputError(f"end_token: the vocabulary of tokenizer {name} lacks {', '.join(candidates)}; name one it has")


def load_saved_tokenizer(folder: Path, name: str, end_id: int) -> Tokenizer:
    """Load the tokenizer a corpus was prepared with from the corpus folder."""
    if name == BYTES:
        return ByteTokenizer()
    tokenizer = _read_tokenizer(str(folder / TOKENIZER_FILE))
    return HuggingFaceTokenizer(tokenizer, name, end_id)


def _read_tokenizer(name: str) -> tokenizers.Tokenizer:
    path = Path(name)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    is_file = path.suffix == ".json"
    if is_file and not path.is_file():
        raise InputError(f"tokenizer: there is no file {path}")
    try:
        return tokenizers.Tokenizer.from_file(str(path)) if is_file else tokenizers.Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exceptions
        reason = str(error).splitlines()[0]
        wanted = "is no fast tokenizer" if is_file else "is neither 'bytes', a tokenizer.json nor found on the Hub"
        raise InputError(f"tokenizer: {path if is_file else name} {wanted} ({reason})") from error
