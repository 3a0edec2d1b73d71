"""tiktoken in place of `tokenizers` for byte-level BPE, several times as fast, where it provably gives the same ids.

`tokenizers` merges the listed pair that comes first in its list of merges; tiktoken merges the adjacent pair whose
concatenation has the lowest rank, listed or not. They cut text into words alike (`PATTERNS`), and within a word they
agree if this holds for every token that tiktoken can make: encoding the token's own bytes, the last two parts are a
listed pair, and in the order of tiktoken's ranks those pairs come in the order of the list (`_merges_agree`).

Proof, by induction over the merges of a word: let both have the same parts so far. No merge has crossed the ends of a
pair of neighbouring parts A, B, so all merges inside it are those of encoding AB alone, in the same order; if AB is a
token, then A, B are its last two parts. Hence every candidate of tiktoken is a listed pair, all candidates for a token
are the same pair, and the first of them by rank and then by place is the same for both.

What this does not cover, the regular expressions and the code of the two libraries, is tested on texts before use.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import normalizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = (GPT2, LLAMA3, QWEN2, GPT4O)
"""Published patterns that both libraries' regular expressions read alike."""
FRAGMENTS = (
    *("it's", "I'LL", "don't", "'", "''re", "'\u017f", "we've'd", "word", "Word", "WORD", "CamelCase", "naïve"),
    *("straße", "\u01c5\u01c6", "日本語", "한국어", "Ελλάδα", "Привет", "שלום", "e\u0301", "\u0301", "\u0345"),
    *("0", "12", "345", "6789", "3.14159", "0x7f", "½", "٣٤", "Ⅷ", "x2", "🙂", "👩‍👩‍👧", "🇫🇷", "\U000e0041"),
    *("(", "){", "==", "->", "/*", "//", "...", "—", "_", "\0", "\x7f", "\u200b", "\u200d", "\ufeff", "\xad"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\n    ", "\xa0", "\u3000", "\u2028", "\x85"),
    *("\x0b", "\x1c", "\ue000", "\uffff", "\U0010ffff"),
)
"""What word boundaries, Unicode and byte-level alphabets stumble over."""


class TiktokenEncoder:
    """Encodes what is proved to be encoded alike; see the module."""

    def __init__(self, pattern: str, ranks: dict[bytes, int], ids: np.ndarray, elsewhere: Sequence[re.Pattern[str]]):
        # Without any special token its search for them would stop at every character.
        unused = {"<|none|>": len(ranks)}
        self._encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=unused)
        self._ids = ids
        self._elsewhere = elsewhere

    def encode(self, text: str) -> np.ndarray | None:
        """Token ids, int64; None for the rare text that is for `tokenizers` itself."""
        if any(pattern.search(text) for pattern in self._elsewhere):
            return None
        try:
            return self._ids[self._encoding.encode_to_numpy(text, disallowed_special=())]
        except ValueError:  # white space without end exhausts its regular expressions
            return None


def prove_equal(tokenizer: tokenizers.Tokenizer) -> TiktokenEncoder | None:
    """An encoder with the ids of `tokenizer` (special tokens read as text), or None if equality cannot be shown."""
    spec = json.loads(tokenizer.to_str())
    pattern, model = _word_pattern(spec["pre_tokenizer"]), spec["model"]
    if pattern is None or spec["normalizer"] not in (None, {"type": "NFC"}) or not _is_byte_level(model):
        return None
    ranks = _token_ranks(model)
    if not _merges_agree(model, ranks):
        return None
    ids = np.array([model["vocab"][token] for token in ranks], dtype=np.int64)
    elsewhere = [re.compile(re.escape(token["content"])) for token in spec["added_tokens"] if not token["special"]]
    if spec["normalizer"] is not None:
        elsewhere.append(re.compile("[^\0-\u02ff]"))  # below the first combining mark, every text is in NFC
    if disputed := _disputed_characters(pattern):
        elsewhere.append(re.compile(f"[{disputed}]"))
    encoder = TiktokenEncoder(pattern, {_bytes(token): rank for token, rank in ranks.items()}, ids, elsewhere)
    texts = [*_spelled(ranks), *_adversarial_texts(spec["added_tokens"]), *list(topics.values())[:20]]
    return encoder if _same_ids(tokenizer, encoder, texts) else None


def _word_pattern(pre_tokenizer: Any) -> str | None:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern if pattern in PATTERNS else None
    return None


def _is_byte_level(model: dict[str, Any]) -> bool:
    plain = not (model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model["type"] == "BPE" and plain and _symbols().keys() <= model["vocab"].keys()


def _token_ranks(model: dict[str, Any]) -> dict[str, int]:
    """Ascending ranks of the tokens that words can become: bytes first, then in the order of the merges."""
    merged = ("".join(pair) for pair in model["merges"])
    # With `ignore_merges`, a word that is in the vocabulary needs no merges.
    whole = model["vocab"] if model["ignore_merges"] else ()
    tokens = dict.fromkeys([*_symbols(), *merged, *whole])
    return {token: rank for rank, token in enumerate(token for token in tokens if _symbols().keys() >= set(token))}


def _merges_agree(model: dict[str, Any], ranks: dict[str, int]) -> bool:
    listed = {tuple(pair): place for place, pair in enumerate(model["merges"])}
    last_place = -1
    for token in ranks:
        if len(token) == 1:
            continue
        parts = _last_parts(token, ranks)
        if len(parts) > 2:  # no merges lead to it
            if not model["ignore_merges"]:
                return False
            continue
        place = listed.get(tuple(parts), -1)
        if place <= last_place:
            return False
        last_place = place
    return True


def _last_parts(token: str, ranks: dict[str, int]) -> list[str]:
    """The parts of a token by tiktoken's rule, when two are left or none of them can be merged."""
    parts = list(token)
    never = len(ranks)
    while len(parts) > 2:
        pairs = [ranks.get(left + right, never) for left, right in pairwise(parts)]
        lowest = min(pairs)
        if lowest == never:
            break
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


@cache
def _disputed_characters(pattern: str) -> str:
    """Characters that the two libraries, which know Unicode from different years, put into different classes."""
    every = np.r_[0x80:0xD800, 0xE000:0x40000, 0xE0000:0xE1000].astype("<u4").tobytes().decode("utf-32-le")
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    disputed: set[str] = set()
    for atom in {*re.findall(r"\\p\{\w+\}", pattern), r"\s", "(?i:[sdmtlvre])"}:
        theirs = normalizers.Replace(tokenizers.Regex(f"(?:(?!{atom}).)+"), "").normalize_str(every)
        encoding = tiktoken.Encoding("", pat_str=atom, mergeable_ranks=single_bytes, special_tokens={})
        disputed ^= set(theirs) ^ set(bytes(encoding.encode_ordinary(every)).decode())
    return "".join(sorted(disputed))


@cache
def _symbols() -> dict[str, int]:
    """The character by which byte-level vocabularies write each byte: itself where it prints, else from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}


def _bytes(token: str) -> bytes:
    return bytes(map(_symbols().__getitem__, token))


def _spelled(tokens: dict[str, int]) -> Iterator[str]:
    """Every token that is text by itself."""
    for token in tokens:
        with suppress(UnicodeDecodeError):
            yield _bytes(token).decode()


def _adversarial_texts(added_tokens: list[dict[str, Any]]) -> Iterator[str]:
    rng = random.Random(0)
    fragments = [*FRAGMENTS, "<|none|>", *(token["content"] for token in added_tokens[:32])]
    yield from fragments
    for _ in range(100):
        yield "".join(rng.choices(fragments, k=30))
        yield rng.randbytes(100).decode(errors="replace")
        yield "".join(rng.choices([" ", "\n", "\t", "\r", "a", "1", "."], k=60))
        yield "".join(chr(rng.randrange(0xD800)) for _ in range(50))
    for character in " \na1.é":
        yield character * 1000


def _same_ids(tokenizer: tokenizers.Tokenizer, encoder: TiktokenEncoder, texts: list[str]) -> bool:
    for text, expected in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        ids = encoder.encode(text)
        if ids is not None and ids.tolist() != expected.ids:
            return False
    return True
