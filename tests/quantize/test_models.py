import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.generate.transformer import SanaTransformer
from fewer.quantize.models import empty_model, open_model

CPU = torch.device("cpu")


def test_our_sana_opens_as_ours_and_an_empty_one_has_its_tensors(sana_folder: Path) -> None:
    opened = open_model(str(sana_folder), torch.float32, CPU)
    assert isinstance(opened.module, SanaTransformer) and opened.pipeline is None
    empty = empty_model(json.loads(json.dumps(opened.config)), "SanaTransformer")
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in opened.module.state_dict().items()}


def test_a_diffusers_model_opens_as_diffusers(tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=64, caption_channels=32, sample_size=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    opened = open_model(str(tmp_path), torch.bfloat16, CPU)
    assert type(opened.module).__name__ == "PixArtTransformer2DModel"
    assert next(opened.module.parameters()).dtype == torch.bfloat16
    assert type(empty_model(opened.config, "")).__name__ == "PixArtTransformer2DModel"


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        ({"quantization_config": {}}, ConfigError, "quantized already"),
        ({}, ConfigError, "neither a _class_name"),
        ({"_class_name": "NoSuchModel"}, ConfigError, "NoSuchModel"),
        (None, FileError, "config.json"),
    ],
)
def test_folders_that_cannot_be_opened_say_why(
    tmp_path: Path, config: dict[str, object] | None, kind: type[Exception], text: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=text):
        open_model(str(tmp_path), torch.float32, CPU)
    with pytest.raises(FileError, match="no folder"):
        open_model(str(tmp_path / "nowhere"), torch.float32, CPU)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "PixArtTransformer2DModel", "num_layers": "x"},
        {"model_type": "llama", "hidden_size": "x"},
        {"model_type": "no-such-type"},
    ],
)
def test_a_configuration_of_other_types_describes_no_model(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="describes no"):
        empty_model(config, "")


def test_a_language_model_opens_as_the_class_it_was_saved_as_or_not_at_all(tmp_path: Path) -> None:
    """An encoder has no head: opened as a decoder it would get one of random numbers."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), torch.float32, CPU)
    assert type(opened.module) is BertModel
    assert type(empty_model(json.loads(json.dumps(opened.config)), "BertModel")) is BertModel
    told = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(FileError, match=r"lack . tensors of a BertForMaskedLM: cls\.predictions"):
        open_model(str(tmp_path), torch.float32, CPU)
