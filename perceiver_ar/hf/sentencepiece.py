"""SentencePiece models as tokenizers of the `tokenizers` library, with the same ids but for rare texts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, USER_DEFINED = 1, 2, 4
UNIGRAM, BPE = 1, 2
SPACE = "▁"
NEVER = -1e4
"""A log probability that no way of writing a text needs to resort to."""
FRAGMENTS = (
    *(" ", "  ", "\n", "\r\n", "\t", "\0", "\u3000", "\xa0", "\u200b", "\ufeff", SPACE, "word", "Word", "the", "of"),
    *("x = f(a)", "12", "345", "é", "e\u0301", "\ufb01", "½", "①", "\uff21", "日本語", "한국어", "Привет", "🙂"),
    *("'s", "--", "."),
)


def convert_sentencepiece(model: bytes) -> Tokenizer:
    """The tokenizer that gives the ids of a serialised `ModelProto`.

    A BPE model that folds no characters (normalization rule `identity`) is converted exactly. Others give other ids for

    - combining marks behind a character that is folded or composed, if the model folds any (`nfkc`, `nmt_nfkc`, ...):
      `tokenizers` drops those of "①" + U+0301;
    - ways of cutting a text that are equally likely up to rounding, as are runs of spaces cut in two orders, if the
      model is a unigram model: SentencePiece adds up in single precision, `tokenizers` in double.

    Raises:
        ValueError: the model cannot be converted, or probing shows another difference; the message says why.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    if proto.trainer_spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        raise ValueError("it does not write a space as ▁ in front of what follows")
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
    tokenizer.decoder = _decoder(proto.normalizer_spec)
    symbols = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(symbol, normalized=True) for symbol in symbols])
    _check_same_ids(tokenizer, model, [piece.piece for piece in proto.pieces])
    return tokenizer


def _model(proto: Any) -> models.BPE | models.Unigram:
    pieces, spec = proto.pieces, proto.trainer_spec
    normal = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    if not normal.keys() >= set("".join(normal)):
        raise ValueError("some of its pieces have characters that are no pieces")
    if spec.model_type == UNIGRAM:
        # Control symbols and bytes are pieces like all others there; they must not be read from text.
        scores = [(piece.piece, normal.get(piece.piece, NEVER)) for piece in pieces]
        [unknown] = [number for number, piece in enumerate(pieces) if piece.type == UNKNOWN]
        return models.Unigram(scores, unk_id=unknown, byte_fallback=spec.byte_fallback)
    if spec.model_type != BPE:
        raise ValueError("it is neither a BPE nor a unigram model")
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(pieces)},
        merges=_merges(normal),
        unk_token=spec.unk_piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """SentencePiece merges any two neighbours that make a piece, best score first: each way to split a piece."""
    merged = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    if len({scores[piece] for piece in merged}) < len(merged):
        raise ValueError("some of its pieces have equal scores")
    return [
        (piece[:place], piece[place:])
        for piece in merged
        for place in range(1, len(piece))
        if piece[:place] in scores and piece[place:] in scores
    ]


def _normalizers(spec: Any) -> list[normalizers.Normalizer]:
    rules: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        rules.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        rules.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        rules.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        rules.append(normalizers.Prepend(SPACE))
    return [*rules, normalizers.Replace(" ", SPACE)]


def _decoder(spec: Any) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _check_same_ids(tokenizer: Tokenizer, model: bytes, pieces: list[str]) -> None:
    """Compares ids of some hundred texts, without what is known to differ: evidence, no proof."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in _probe_texts(pieces):
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise ValueError(f"{text!r} gets other ids")


def _probe_texts(pieces: list[str]) -> Iterator[str]:
    yield from (piece.replace(SPACE, " ") for piece in pieces)
    rng = random.Random(0)
    for _ in range(300):
        yield "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 30)))
        yield "".join(rng.choices(pieces, k=30)).replace(SPACE, " ")
