"""SentencePiece models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
import xxhash

from pretrain.corpus.tokenizers.cutting import cuts_leave_no_trace, encode_in_pieces
from pretrain.errors import InputError

MODEL_FILE = "tokenizer.model"


class SentencePieceTokenizer:
    """A `.model` file; ids are those of the model itself, and its control symbols are never read from text.

    A model normalises text before it cuts it: many fold compatibility characters (NFKC), drop or merge spaces and put
    one in front. `decode` gives the normalised text, not the original. Every model writes a space as "▁" (U+2581), so
    that character reads back as a space. Characters a model does not know are lost unless it falls back to bytes.
    """

    engine = "sentencepiece"

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, name: str, end_id: int):
        model = processor.serialized_model_proto()
        self.name = name
        self.files = {MODEL_FILE: model}
        self.hash = xxhash.xxh64_hexdigest(model)
        self.vocab_size = processor.vocab_size()
        self.end_id = end_id
        self._processor = processor

    @classmethod
    def load(cls, name: str, end_token: str | None) -> SentencePieceTokenizer:
        """A `.model` file; see `load_tokenizer`."""
        processor = _read_model(Path(name))
        if end_token is None:
            end_id = processor.eos_id()
            if end_id < 0:
                raise InputError(f"end_token: the model {name} has no end-of-sequence symbol; name a token it has")
        else:
            end_id = processor.piece_to_id(end_token)
            if processor.id_to_piece(end_id) != end_token:
                raise InputError(f"end_token: the vocabulary of tokenizer {name} lacks {end_token}; name one it has")
        if not processor.is_control(end_id):
            raise InputError(
                f"end_token: {processor.id_to_piece(end_id)} is no control symbol of the model {name}, so texts can "
                "have it in them; name one that is"
            )
        return cls(processor, name, end_id)

    @classmethod
    def load_saved(cls, file: Path, name: str, end_id: int) -> SentencePieceTokenizer:
        """From the file kept in a corpus folder."""
        return cls(_read_model(file), name, end_id)

    def encode(self, text: str | bytes) -> np.ndarray:
        return self.encode_batch([text.encode() if isinstance(text, str) else text])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return encode_in_pieces(texts, self._encode, lambda: self._may_cut)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode(np.asarray(ids, dtype=np.int64).tolist())

    @cached_property
    def _may_cut(self) -> bool:
        return cuts_leave_no_trace(self._processor.encode, self._processor.decode)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.asarray(self._processor.encode(text), dtype=np.int64) for text in texts]


def _read_model(path: Path) -> sentencepiece.SentencePieceProcessor:
    if not path.is_file():
        raise InputError(f"tokenizer: there is no file {path}")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(path.read_bytes())
    except RuntimeError as error:
        raise InputError(f"tokenizer: {path} is no SentencePiece model") from error
    return processor
