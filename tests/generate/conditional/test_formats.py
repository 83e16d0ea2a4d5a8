import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import ConfigError, FileError
from fewer.core.tensors import read_tensors, write_tensors
from fewer.generate.class_pictures import is_class_conditional
from fewer.generate.conditional.formats import WEIGHTS, load_folder, load_public, save_folder
from tests.generate.conditional.conftest import SHAPES, tiny, upgraded

NAMES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("shape", ["dit adaln", "u-vit", "cat tokens"])
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(shape: str, conditioned: bool, tmp_path: Path, batch: tuple) -> None:
    model = upgraded(shape) if conditioned else tiny(shape)
    save_folder(model, tmp_path, NAMES)
    again, names = load_folder(tmp_path)
    assert names == NAMES and is_class_conditional(tmp_path)
    assert torch.equal(again(*batch), model(*batch))


@torch.no_grad()
def test_authors_names_load(tmp_path: Path, batch: tuple) -> None:
    model = tiny("u-vit")
    published = {name: t for name, t in model.state_dict().items() if "dwconv" not in name}
    table = published.pop("label_emb.weight")
    write_tensors(tmp_path / "u.safetensors", published | {"label_emb.embedding_table.weight": table})
    loaded = load_public(SHAPES["u-vit"], tmp_path / "u.safetensors")
    assert torch.equal(loaded.decoder_pred.weight, model.decoder_pred.weight)
    assert loaded.mid_block.mlp.dwconv.weight.sum() == loaded.mid_block.mlp.dwconv.weight.shape[0]
    write_tensors(tmp_path / "odd.safetensors", published | {"nose": torch.zeros(1)})
    with pytest.raises(
        FileError, match=r"missing \['label_emb.weight'\], unknown or of another shape \['nose'\]"
    ):
        load_public(SHAPES["u-vit"], tmp_path / "odd.safetensors")
    published["label_emb.weight"] = table
    last = {name: published.pop(f"final_layer.{name}") for name in ("weight", "bias")}
    write_tensors(tmp_path / "imagenet.safetensors", published)
    plain = load_public(SHAPES["u-vit"], tmp_path / "imagenet.safetensors")
    before = plain(*batch)
    plain.final_layer = torch.nn.Identity()
    assert torch.equal(plain(*batch), before)
    write_tensors(tmp_path / "half.safetensors", published | {"final_layer.weight": last["weight"]})
    with pytest.raises(FileError, match=r"missing \['final_layer.bias'\]"):
        load_public(SHAPES["u-vit"], tmp_path / "half.safetensors")
    published |= {f"final_layer.{name}": tensor for name, tensor in last.items()}
    del published["pos_embed"]  # learned: it must not stay as it was drawn
    write_tensors(tmp_path / "lost.safetensors", published)
    with pytest.raises(FileError, match=r"missing \['pos_embed'\]"):
        load_public(SHAPES["u-vit"], tmp_path / "lost.safetensors")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    save_folder(upgraded("dit tokens"), tmp_path, NAMES)
    config = json.loads((tmp_path / "config.json").read_text())

    def changed(**parts: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config | parts))

    changed(params=None)
    with pytest.raises(FileError, match="describes no network"):
        load_folder(tmp_path)
    changed(params=config["params"] | {"width": 32})
    with pytest.raises(FileError, match="does not fit"):
        load_folder(tmp_path)
    for huge in ({"width": 65536}, {"depth": 512}, {"ffn_ratio": 64.0}):  # terabytes, were they built
        changed(params=config["params"] | huge)
        with pytest.raises(FileError, match=r"does not fit|too few for 512 blocks"):
            load_folder(tmp_path)
    changed(params=config["params"] | {"depth": 60_000})
    with pytest.raises(ConfigError, match="depth"):
        load_folder(tmp_path)
    changed(plan=config["plan"] | {"targets": 5})
    with pytest.raises(ConfigError, match="targets"):
        load_folder(tmp_path)
    changed(params=config["params"] | {"width": -1})
    with pytest.raises(ConfigError, match="width"):
        load_folder(tmp_path)
    changed(plan=config["plan"] | {"targets": ["nose"]})
    with pytest.raises(ConfigError, match="targets"):
        load_folder(tmp_path)
    changed(class_names=["one"])
    with pytest.raises(FileError, match="names 1 classes"):
        load_folder(tmp_path)
    changed(quantization_config={"quant_method": "fewer"})
    with pytest.raises(ConfigError, match="is quantized"):
        load_folder(tmp_path)
    changed(_class_name="Other")
    with pytest.raises(FileError, match="no class-conditional network"):
        load_folder(tmp_path)
    changed()
    tensors = read_tensors(tmp_path / WEIGHTS)
    tensors.pop("can.attn_out.a.weight")
    write_tensors(tmp_path / WEIGHTS, tensors)
    with pytest.raises(FileError, match=r"can\.attn_out\.a\.weight"):
        load_folder(tmp_path)
