"""Tokenizer: text to ids and ids to true bytes, for byte-level BPE checkpoints of the R1 shape.

Owns the facts of a checkpoint's vocabulary: its real size, the markers by their strings, the
end-of-sequence ids, the bytes behind each id. Refuses to know roles, templates and requests.

Two encoders are made of one tokenizer.json:

    full     added tokens recognised      template pieces, raw completions
    content  no added tokens in it at all what people wrote: no control id can come out of it
"""

import contextlib
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

# Fullwidth bars (U+FF5C) and low block characters (U+2581), as in DeepSeek's own files; look-alikes
# made of ASCII are ordinary text.
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER = "<\uff5cUser\uff5c>"
ASSISTANT = "<\uff5cAssistant\uff5c>"
THINK_START = "<think>"
THINK_END = "</think>"


class TokenizerError(ValueError):
    """A checkpoint's tokenizer files cannot be served; the message names file and remedy."""


class Tokenizer:
    """One checkpoint's vocabulary. Immutable after construction, safe to share between threads.

    Attributes:
        model_dir: the checkpoint's folder.
        size: real ids are 0 ... size - 1; the embedding may have more rows, never to be sampled.
        eos_token_ids: ids that end a sequence: those of generation_config.json (config.json where
            that is silent), and the template's own end-of-sentence marker.
        bos_id, eos_id, user_id, assistant_id, think_start_id, think_end_id: the markers, found by
            their strings. BOS is never taken from config.json, where R1 distills name EOS instead.
        special_ids: ids that are never shown as text. The think tags are not among them.
        added_ids: ids of all added tokens, which ordinary text never becomes.
    """

    def __init__(self, model_dir: str | Path) -> None:
        """Reads tokenizer.json, generation_config.json and config.json (the last two optional).

        Raises:
            TokenizerError: a file is missing or unusable, or a marker is not an added token.
        """
        self.model_dir = Path(model_dir)
        path = self.model_dir / "tokenizer.json"
        spec = _read_json(path)
        if spec is None:
            raise TokenizerError(f"{path} is missing: copy it from the checkpoint's publisher")
        _require_bpe(spec, path)
        added = _added_tokens(spec, path)
        ids = {str(token["content"]): int(token["id"]) for token in added}
        self.bos_id = _marker(ids, BOS, path)
        self.eos_id = _marker(ids, EOS, path)
        self.user_id = _marker(ids, USER, path)
        self.assistant_id = _marker(ids, ASSISTANT, path)
        self.think_start_id = _marker(ids, THINK_START, path)
        self.think_end_id = _marker(ids, THINK_END, path)

        # Truncation or padding left in a published file would silently bend prompts.
        bare = {**spec, "truncation": None, "padding": None, "post_processor": None}
        self._full = _load(bare, path)
        self._content = _load(_without_added_tokens(bare), path)
        self._bytes = _true_bytes(self._full.get_vocab(with_added_tokens=True), ids, path)
        self.added_ids = frozenset(ids.values())
        self.size = max(self._bytes) + 1
        self.eos_token_ids = _declared_eos(self.model_dir, self.size) | {self.eos_id}
        flagged = {int(token["id"]) for token in added if token.get("special")}
        markers = {self.bos_id, self.eos_id, self.user_id, self.assistant_id}
        thinking = {self.think_start_id, self.think_end_id}
        self.special_ids = frozenset(flagged | markers | self.eos_token_ids) - thinking
        self._shown = {
            token_id: data
            for token_id, data in self._bytes.items()
            if token_id not in self.special_ids
        }

    def encode(self, text: str) -> list[int]:
        """Ids of text in which added tokens are recognised; no BOS is put in front.

        Raises:
            ValueError: the text is not valid Unicode (a lone surrogate).
        """
        return _encode(self._full, [text])[0]

    def encode_content(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token, whatever it spells.

        Raises:
            ValueError: the text is not valid Unicode (a lone surrogate).
        """
        return _encode(self._content, [text])[0]

    def encode_contents(self, texts: list[str]) -> list[list[int]]:
        """encode_content of each text, in one call that leaves the interpreter free meanwhile."""
        return _encode(self._content, texts) if texts else []

    def read_config(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the checkpoint, empty where there is no such file.

        Raises:
            TokenizerError: the file cannot be read or holds no object.
        """
        return _read_json(self.model_dir / name) or {}

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes behind an id; a marker's are its string, an unknown id has none."""
        return self._bytes.get(token_id, b"")

    def shown_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of a run of ids as people may see them: special ids have none."""
        shown = self._shown
        return b"".join([shown.get(token_id, b"") for token_id in token_ids])

    @functools.cached_property
    def whole_texts(self) -> dict[int, str]:
        """What an id shows, for every id whose bytes are whole characters."""
        texts = {}
        for token_id, data in self._shown.items():
            with contextlib.suppress(UnicodeDecodeError):
                texts[token_id] = data.decode()
        return texts

    def decode(self, token_ids: Iterable[int]) -> str:
        """All text behind ids, markers included; invalid UTF-8 becomes U+FFFD."""
        data = b"".join([self._bytes.get(token_id, b"") for token_id in token_ids])
        return data.decode("utf-8", errors="replace")


def _encode(encoder: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    try:
        encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError as error:
        raise ValueError("the text is not valid Unicode: it holds a lone surrogate") from error
    return [encoding.ids for encoding in encodings]


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}): fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} is not a JSON object: fetch the file again")
    return value


def _require_bpe(spec: dict[str, Any], path: Path) -> None:
    model = spec.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(
            f"{path} does not hold a byte-level BPE model: serve a checkpoint of the "
            "DeepSeek-R1-Distill-Qwen family"
        )


def _added_tokens(spec: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    added = spec.get("added_tokens") or []
    if not all(isinstance(token, dict) and {"id", "content"} <= token.keys() for token in added):
        raise TokenizerError(f"{path}: added_tokens is malformed: fetch the file again")
    return list(added)


def _marker(ids: dict[str, int], marker: str, path: Path) -> int:
    if marker in ids:
        return ids[marker]
    ascii_twin = marker.replace("\uff5c", "|").replace("\u2581", "_")
    twin = f" (it has the look-alike {ascii_twin!r})" if ascii_twin in ids else ""
    raise TokenizerError(
        f"{path} has no added token {marker!r}{twin}: serve a DeepSeek-R1 checkpoint with its own, "
        "unchanged tokenizer.json"
    )


def _load(spec: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{path} cannot be loaded ({error}): fetch the file again") from error


def _without_added_tokens(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, unable to produce an added token's id.

    Some publishers repeat added tokens in the model's own vocabulary, from where plain text could
    still reach them; such entries go too, with the merges that lead to them.
    """
    model = spec["model"]
    control = {token["id"] for token in spec.get("added_tokens") or []}
    gone = {piece for piece, token_id in model["vocab"].items() if token_id in control}
    if gone:
        merges = [
            pair
            for pair in model.get("merges", [])
            if gone.isdisjoint((*_halves(pair), "".join(_halves(pair))))
        ]
        vocab = {piece: number for piece, number in model["vocab"].items() if piece not in gone}
        model = {**model, "vocab": vocab, "merges": merges}
    return {**spec, "added_tokens": [], "model": model}


def _halves(merge: str | list[str]) -> list[str]:
    """Both halves of a merge, which files write as "a b" or as ["a", "b"]."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def _true_bytes(vocab: dict[str, int], added: dict[str, int], path: Path) -> dict[int, bytes]:
    alphabet = _byte_alphabet()
    table = {}
    for piece, token_id in vocab.items():
        if piece in added:
            continue
        try:
            table[token_id] = bytes([alphabet[character] for character in piece])
        except KeyError as error:
            raise TokenizerError(
                f"{path}: token {token_id} ({piece!r}) is not byte-level BPE: serve a checkpoint "
                "of the DeepSeek-R1-Distill family"
            ) from error
    return table | {token_id: text.encode() for text, token_id in added.items()}


def _declared_eos(model_dir: Path, size: int) -> frozenset[int]:
    """eos_token_id of generation_config.json, of config.json where the first is silent."""
    for name in ("generation_config.json", "config.json"):
        declared = (_read_json(model_dir / name) or {}).get("eos_token_id")
        if declared is None:
            continue
        ids = declared if isinstance(declared, list) else [declared]
        if not all(isinstance(token, int) and 0 <= token < size for token in ids):
            raise TokenizerError(
                f"{model_dir / name}: eos_token_id {declared!r} is not a token of tokenizer.json "
                f"(ids end at {size - 1}): take both files from the same checkpoint"
            )
        return frozenset(ids)
    return frozenset()
