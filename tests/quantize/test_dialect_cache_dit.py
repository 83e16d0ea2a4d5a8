import json
from pathlib import Path

import pytest

from fewer.core.errors import FileError
from fewer.core.tensors import tensor_header
from fewer.quantize import dialect_cache_dit as dialect
from fewer.quantize.checkpoint import apply_checkpoint


@pytest.mark.parametrize("form", ["int4", "nvfp4"])
def test_a_directory_round_trips_without_the_sixteen_bit_rest(
    flux_checkpoint, tmp_path: Path, form: str
) -> None:
    checkpoint, skeleton = flux_checkpoint(form)
    left = dialect.write_folder(checkpoint, tmp_path)
    assert set(left) == set(checkpoint.names("w4a16"))
    again = dialect.read_folder(tmp_path)
    assert set(again.layers) == set(checkpoint.names(form)) and again.plain == {}
    assert all(layer.facts() == checkpoint.layers[name].facts() for name, layer in again.layers.items())
    path = tmp_path / f"svdq_{form}_r16.safetensors"
    header, metadata = tensor_header(path)
    payload = json.loads(metadata["cache_dit_svdq_ptq"])
    assert payload["version"] == 2 and payload["precision"] == form
    assert header["transformer_blocks.0.attn.to_q.smooth_factor_orig"].shape == (128,)
    first = path.read_bytes()
    dialect.write_folder(again, tmp_path / "second")
    assert (tmp_path / "second" / path.name).read_bytes() == first
    apply_checkpoint(skeleton.__class__.from_config(skeleton.config), again, whole=False)


def test_other_versions_and_paths_that_leave_the_folder_are_refused(flux_checkpoint, tmp_path: Path) -> None:
    dialect.write_folder(flux_checkpoint("int4")[0], tmp_path)
    config = json.loads((tmp_path / dialect.CONFIG).read_text())
    (tmp_path / dialect.CONFIG).write_text(json.dumps(config | {"checkpoint_path": "../other.safetensors"}))
    with pytest.raises(FileError, match="leads out"):
        dialect.read_folder(tmp_path)
    (tmp_path / dialect.CONFIG).write_text(json.dumps(config | {"version": 1}))
    with pytest.raises(FileError, match="version 2"):
        dialect.read_folder(tmp_path)
