import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from fewer.core.errors import FileError
from fewer.generate.text.tokens import PlainTokenizer, plain_tokenizer

TEXTS = ["", "a cat", " two  Red\tapples\n", "Ünïcode — 日本語 🦊", "</s><bos><eos> <pad>", "x" * 500]


@pytest.fixture(scope="module")
def both(llama_folder: Path) -> tuple[PlainTokenizer, object]:
    from transformers import AutoTokenizer

    own = plain_tokenizer(llama_folder)
    assert own is not None
    return own, AutoTokenizer.from_pretrained(llama_folder, local_files_only=True)


def test_ids_are_those_of_transformers(both) -> None:
    own, theirs = both
    assert [own.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert own(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(own, name) == getattr(theirs, name)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(strategies.text())
def test_ids_of_any_text_are_those_of_transformers(both, text: str) -> None:
    own, theirs = both
    assert own.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    "change", [{"tokenizer_class": "LlamaTokenizer"}, {"add_bos_token": True}, {"added_tokens_decoder": {}}]
)
def test_what_may_change_ids_is_left_to_transformers(llama_folder: Path, tmp_path: Path, change) -> None:
    folder = tmp_path / "other"
    shutil.copytree(llama_folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert plain_tokenizer(folder) is None


def test_a_damaged_file_is_named(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(llama_folder, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(FileError, match="no tokenizer that opens"):
        plain_tokenizer(folder)
