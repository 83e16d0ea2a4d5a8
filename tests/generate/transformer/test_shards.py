"""Sharded weight files, and names that try to leave their folder."""

import json

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.transformer import SanaTransformer
from fewer.generate.transformer.shards import weight_files, write_shards


def test_shards_load_and_escape_is_refused(tiny, tmp_path):
    ours = tiny()
    ours.save(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    written = write_shards(tmp_path, ours.state_dict(), limit=20_000)
    assert len(written) > 3
    assert max(file.stat().st_size for file in written) < 40_000
    loaded = SanaTransformer.load(tmp_path, dtype=torch.bfloat16)
    assert loaded.proj_out.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.proj_out.weight, ours.proj_out.weight.bfloat16())
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("../outside.safetensors", "/etc/passwd", "absent.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(FileError):
            weight_files(tmp_path)
    for text in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(FileError):
            weight_files(tmp_path)


def test_saving_whole_over_shards_is_read_back(tiny, tmp_path):
    old, new = tiny(), tiny()
    new.proj_out.bias.data.fill_(3.0)
    write_shards(tmp_path, old.state_dict(), limit=20_000)
    new.save(tmp_path)
    assert torch.equal(SanaTransformer.load(tmp_path).proj_out.bias, new.proj_out.bias)


def test_variants_come_after_full_precision(tmp_path):
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in weight_files(tmp_path)] == ["diffusion_pytorch_model.bf16.safetensors"]
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert [file.name for file in weight_files(tmp_path)] == ["diffusion_pytorch_model.safetensors"]
