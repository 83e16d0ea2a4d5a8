"""Native names: every tensor finds its place, leftovers go, strangers are named."""

import pytest
import torch

from fewer.core.errors import FileError
from fewer.generate.transformer import PUBLISHED, SanaTransformer
from fewer.generate.transformer.names import from_native, is_native, to_native


@pytest.mark.parametrize("name", ["sana-0.6b-1024", "sprint-0.6b-1024"])
def test_published_shapes_round_trip(name):
    with torch.device("meta"):
        ours = SanaTransformer(PUBLISHED[name]).state_dict()
        native = to_native(ours)
        back = from_native(native)
    assert is_native(set(native)) and not is_native(set(ours))
    assert native["blocks.27.attn.qkv.weight"].shape == (3456, 1152)
    assert native["blocks.0.cross_attn.kv_linear.bias"].shape == (2304,)
    assert ("cfg_embedder.mlp.2.weight" in native) == name.startswith("sprint")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}


def test_native_leftovers_are_dropped_and_strangers_named(tiny):
    native = to_native(tiny().state_dict())
    leftovers = {"y_embedder.y_embedding": torch.zeros(300, 12), "pos_embed": torch.zeros(1, 4, 16)}
    leftovers |= {"logvar_linear.weight": torch.zeros(1, 16)}
    assert from_native(native | leftovers).keys() == from_native(native).keys()
    strangers = {"blocks.0.attn.stranger.weight": torch.zeros(1), "final_layer.odd": torch.zeros(1)}
    with pytest.raises(FileError, match=r"blocks\.0\.attn\.stranger\.weight, final_layer\.odd"):
        from_native(native | strangers)
