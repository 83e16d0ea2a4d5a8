"""The small reader against transformers' Llama: same numbers, and what it must leave alone or refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.core.errors import ConfigError, FileError
from fewer.generate.text.llama import llama_config, load_llama


def changed(folder: Path, to: Path, **config: object) -> Path:
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def states(folder: Path, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]


@pytest.mark.parametrize("positions", [1, 5, 123])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(llama_folder: Path, positions: int, dtype: torch.dtype) -> None:
    ids = torch.randint(700, (2, positions), generator=torch.Generator().manual_seed(positions))
    config = llama_config(llama_folder)
    assert config is not None and config.num_key_value_heads < config.num_attention_heads
    found = load_llama(llama_folder, config, dtype, None)(ids)[0]
    wanted = states(llama_folder, ids, dtype)
    assert found.dtype == dtype
    assert (found - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 0.05)


def test_an_older_config_and_a_model_with_a_head_are_read_alike(llama_folder: Path, tmp_path: Path) -> None:
    folder = changed(llama_folder, tmp_path / "old", rope_theta=500.0, rope_parameters=None, head_dim=None)
    tensors = {f"model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"lm_head.weight": torch.zeros(700, 12)}, folder / "model.safetensors")
    config = llama_config(folder)
    assert config is not None and config.rope_theta == 500.0 and config.head_dim == 4
    ids = torch.tensor([[2, 5, 9, 400]])
    modern = changed(
        llama_folder, tmp_path / "new", rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    )
    assert (load_llama(folder, config, torch.float32, None)(ids)[0] - states(modern, ids)).abs().max() <= 1e-5


def test_padding_on_the_right_changes_nothing_before_it(llama_folder: Path) -> None:
    config = llama_config(llama_folder)
    assert config is not None
    model, ids = load_llama(llama_folder, config, torch.float32, 2), torch.tensor([[2, 5, 9, 0, 0]])
    assert torch.allclose(model(ids)[0][:, :3], model(ids[:, :3])[0], atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma2"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"quantization_config": {"bits": 4}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"hidden_size": "12"},
        {"num_hidden_layers": True},
        {"num_attention_heads": -3},
        {"num_key_value_heads": 2},
        {"head_dim": 3},
        {"rms_norm_eps": None},
    ],
)
def test_what_is_not_a_plain_llama_is_left_to_transformers(
    llama_folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    assert llama_config(changed(llama_folder, tmp_path / "other", **change)) is None


def test_sizes_that_the_file_does_not_bear_out_are_named(llama_folder: Path, tmp_path: Path) -> None:
    def opened(folder: Path, layers: int | None = None) -> None:
        config = llama_config(folder)
        assert config is not None
        load_llama(folder, config, torch.float32, layers)

    with pytest.raises(ConfigError, match="text_layers was 4; this language model has 3"):
        opened(llama_folder, 4)
    with pytest.raises(FileError, match="says 1000000 layers and holds 3"):
        opened(changed(llama_folder, tmp_path / "deep", num_hidden_layers=1_000_000))
    with pytest.raises(FileError, match=r"embed_tokens.weight has shape \[700, 12\]"):
        opened(changed(llama_folder, tmp_path / "wide", vocab_size=16_000_000))
    folder = changed(llama_folder, tmp_path / "less")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FileError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        opened(folder)
    (folder / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(FileError):
        opened(folder)
