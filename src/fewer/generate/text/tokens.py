"""A tokenizer from its tokenizer.json, read by the library `tokenizers` alone, where that says everything."""

from collections.abc import Sequence
from pathlib import Path

from fewer.core.errors import FileError
from fewer.core.files import read_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
# What does not change the ids of a text. Anything else is left to transformers, which knows what it means.
_HARMLESS = {
    "backend", "bos_token", "eos_token", "pad_token", "unk_token", "is_local", "local_files_only",
    "model_max_length", "tokenizer_class", "chat_template", "clean_up_tokenization_spaces",
}  # fmt: skip


class PlainTokenizer:
    """The ids of texts, and of the three tokens that a prompt's layout needs."""

    def __init__(self, backend: object, settings: dict[str, object]) -> None:
        self._backend = backend
        self.bos_token_id = self._id(settings.get("bos_token"))
        self.eos_token_id = self._id(settings.get("eos_token"))
        self.pad_token_id = self._id(settings.get("pad_token"))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with what the tokenizer itself adds around it."""
        return self._backend.encode(text).ids  # type: ignore[attr-defined]

    def __call__(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """Many at once, on all cores, as transformers' tokenizers answer."""
        return {"input_ids": [one.ids for one in self._backend.encode_batch(list(texts))]}  # type: ignore[attr-defined]

    def _id(self, token: object) -> int | None:
        return self._backend.token_to_id(token) if isinstance(token, str) else None  # type: ignore[attr-defined]


def plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """None where transformers is needed to know the ids. Raises `FileError` if tokenizer.json is damaged."""
    if not (folder / FILE).is_file() or not (folder / SETTINGS).is_file():
        return None
    settings = read_json(folder / SETTINGS)
    if settings.get("tokenizer_class") not in _PLAIN_CLASSES or not settings.keys() <= _HARMLESS:
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises nothing narrower
        raise FileError(f"{folder.name!r} holds no tokenizer that opens: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return PlainTokenizer(backend, settings)
