"""Fast tokenizers of Hugging Face's `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import xxhash

from pretrain.corpus.tokenizers.cutting import cuts_leave_no_trace, encode_in_pieces
from pretrain.corpus.tokenizers.tiktoken import TiktokenEncoder, prove_equal
from pretrain.errors import InputError

TOKENIZER_FILE = "tokenizer.json"
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")


class HuggingFaceTokenizer:
    """A fast tokenizer; its identity is its serialisation."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str, end_id: int, serialised: bytes | None = None):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # A document that spells out "<|endoftext|>" contains that text, not the end of a document.
        tokenizer.encode_special_tokens = True
        self.name = name
        # Another version of the library may serialise the same tokenizer in another way.
        content = tokenizer.to_str().encode() if serialised is None else serialised
        self.files = {TOKENIZER_FILE: content}
        self.hash = xxhash.xxh64_hexdigest(content)
        # Ids may have gaps, and the embedding must hold the largest one.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.end_id = end_id
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, name: str, end_token: str | None) -> HuggingFaceTokenizer:
        """A `tokenizer.json`, the folder it lies in, or a name on the Hub; see `load_tokenizer`."""
        tokenizer = _read_tokenizer(name)
        candidates = END_TOKENS if end_token is None else (end_token,)
        for candidate in candidates:
            if (end_id := tokenizer.token_to_id(candidate)) is not None:
                ours = cls(tokenizer, name, end_id)
                ours._check_end_token(candidate)
                return ours
        raise InputError(
            f"end_token: the vocabulary of tokenizer {name} lacks {', '.join(candidates)}; name one it has"
        )

    @classmethod
    def load_saved(cls, file: Path, name: str, end_id: int) -> HuggingFaceTokenizer:
        """From the file kept in a corpus folder."""
        return cls(_read_tokenizer(str(file)), name, end_id, file.read_bytes())

    def _check_end_token(self, token: str) -> None:
        """Raises `InputError` where text can have it in it."""
        for text in (token, self._tokenizer.decode([self.end_id], skip_special_tokens=False)):
            if self.end_id in self._encode_by_tokenizers([text])[0]:
                raise InputError(
                    f"end_token: tokenizer {self.name} reads {token!r} from the text {text!r}, where no document ends; "
                    "name a special token that is no part of any text"
                )

    @property
    def engine(self) -> str:
        return "tokenizers" if self._tiktoken is None else "tiktoken"

    def encode(self, text: str | bytes) -> np.ndarray:
        return self.encode_batch([text.encode() if isinstance(text, str) else text])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return encode_in_pieces(texts, self._encode, lambda: self._may_cut)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids, dtype=np.int64).tolist(), skip_special_tokens=True)

    @cached_property
    def _tiktoken(self) -> TiktokenEncoder | None:
        return prove_equal(self._tokenizer)

    @cached_property
    def _may_cut(self) -> bool:
        return cuts_leave_no_trace(lambda text: self._encode([text])[0].tolist(), self.decode)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        ids = [None if self._tiktoken is None else self._tiktoken.encode(text) for text in texts]
        slow = iter(self._encode_by_tokenizers([text for text, done in zip(texts, ids, strict=True) if done is None]))
        return [np.asarray(next(slow), dtype=np.int64) if done is None else done for done in ids]

    def _encode_by_tokenizers(self, texts: list[str]) -> list[list[int]]:
        with _refusing(f"tokenizer: {self.name} cannot encode a text"):
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _read_tokenizer(name: str) -> tokenizers.Tokenizer:
    path = Path(name)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    is_file = path.suffix == ".json"
    if is_file and not path.is_file():
        raise InputError(f"tokenizer: there is no file {path}")
    wanted = "is no fast tokenizer" if is_file else "is neither 'bytes', a tokenizer file nor found on the Hub"
    with _refusing(f"tokenizer: {path if is_file else name} {wanted}"):
        return tokenizers.Tokenizer.from_file(str(path)) if is_file else tokenizers.Tokenizer.from_pretrained(name)


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    """Makes an `InputError` of what the library raises: bare Exceptions, and panics that are not even these."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{problem} ({reason})") from error
