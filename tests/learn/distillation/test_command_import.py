import json
from pathlib import Path

import pytest
import torch

from fewer.cli import main
from fewer.core.tensors import write_tensors
from fewer.learn.data import resized
from fewer.learn.distillation.distilled_set import DistilledSet
from tests.learn.distillation.conftest import make_pictures


def test_a_pickle_of_dc_becomes_a_distilled_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: pickle, `convert`, `import`, and a network that trains on the result."""
    import numpy as np

    data = make_pictures(count=30)
    np.savez(tmp_path / "d.npz", train_images=data.images[..., 0].numpy(), train_labels=data.labels.numpy())
    sets = [[torch.randn(6, 1, 8, 8), torch.arange(3).repeat_interleave(2)] for _ in range(2)]
    torch.save({"data": sets, "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "res_DC.pt")
    words = ["convert", str(tmp_path / "res_DC.pt"), "--output", str(tmp_path / "c"), "--to", "safetensors"]
    assert main([*words, "--trust-pickle", "--json"]) == 0
    capsys.readouterr()
    output = tmp_path / "dc.distilled.safetensors"
    words = ["learn", "import", str(tmp_path / "c" / "res_DC.safetensors"), "--data", str(tmp_path / "d.npz")]
    assert main([*words, "--output", str(output), "--method", "dc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 6
    torch.testing.assert_close(DistilledSet.load(output).normalised(), sets[1][0])


def test_labels_in_a_file_of_their_own(tmp_path: Path) -> None:
    import numpy as np

    data = make_pictures(count=30, size=20)
    np.savez(tmp_path / "d.npz", train_images=data.images[..., 0].numpy(), train_labels=data.labels.numpy())
    write_tensors(tmp_path / "images.safetensors", {"images": torch.randn(3, 1, 8, 8)})
    write_tensors(tmp_path / "labels.safetensors", {"labels": torch.arange(3)})
    words = ["learn", "import", str(tmp_path / "images.safetensors"), "--data", str(tmp_path / "d.npz")]
    words += ["--output", str(tmp_path / "m.distilled.safetensors"), "--method", "mtt"]
    assert main(words) == 2
    assert main([*words, "--labels", str(tmp_path / "labels.safetensors")]) == 0
    made = DistilledSet.load(tmp_path / "m.distilled.safetensors")
    assert made.labels.tolist() == [0, 1, 2]
    small = resized(data, (8, 8))  # the real set at the size of the distilled pictures
    assert torch.allclose(torch.cat(small.mean_and_deviation()), torch.cat([made.mean, made.deviation]))
