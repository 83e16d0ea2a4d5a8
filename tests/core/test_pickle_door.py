import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.pickle_door import flatten, limit, open_pickle, unwrap
from fewer.core.tensors import read_tensors


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.marker}",)


def test_weights_come_out_as_safetensors_with_dotted_names(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    weights = {
        "block": {"weight": torch.arange(6.0).reshape(2, 3)},
        "bias": torch.ones(2).bfloat16(),
        "step": 7,
    }
    torch.save({"state_dict": weights, "epoch": 3}, source)
    open_pickle(source, target, trusted=True)
    tensors = read_tensors(target)
    assert set(tensors) == {"block.weight", "bias"} and tensors["bias"].dtype == torch.bfloat16
    assert torch.equal(tensors["block.weight"], weights["block"]["weight"])


def test_a_stricter_limit_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {resource.RLIMIT_AS: (1000, 1000), resource.RLIMIT_CPU: (resource.RLIM_INFINITY,) * 2}
    monkeypatch.setattr(resource, "getrlimit", own.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", own.__setitem__)
    limit({"RLIMIT_AS": 5000, "RLIMIT_CPU": 60})
    assert own == {resource.RLIMIT_AS: (1000, 1000), resource.RLIMIT_CPU: (60, 60)}
    limit({"RLIMIT_AS": 500})
    assert own[resource.RLIMIT_AS] == (500, 500)


def test_without_trust_nothing_is_opened(tmp_path: Path) -> None:
    source = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1)}, source)
    with pytest.raises(FileError, match="--trust-pickle"):
        open_pickle(source, tmp_path / "b.safetensors", trusted=False)
    with pytest.raises(FileError, match="not there"):
        open_pickle(tmp_path / "none.pth", tmp_path / "b.safetensors", trusted=True)
    assert not (tmp_path / "b.safetensors").exists()


def test_code_in_a_trusted_pickle_still_does_not_run(tmp_path: Path) -> None:
    source, marker = tmp_path / "evil.pth", tmp_path / "owned"
    torch.save({"a": torch.ones(1), "b": Evil(marker)}, source)
    with pytest.raises(FileError, match="cannot be opened as plain weights"):
        open_pickle(source, tmp_path / "b.safetensors", trusted=True)
    assert not marker.exists() and not (tmp_path / "b.safetensors").exists()


def test_damage_emptiness_and_slowness_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02 not a pickle")
    torch.save({"step": 3}, tmp_path / "empty.pth")
    for name in ("cut.pth", "empty.pth"):
        with pytest.raises(FileError, match=name):
            open_pickle(tmp_path / name, tmp_path / "b.safetensors", trusted=True)

    def late(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(FileError, match="not opened within 3 s"):
        open_pickle(tmp_path / "empty.pth", tmp_path / "b.safetensors", trusted=True, seconds=3)


def test_wrappers_and_lists_are_unfolded() -> None:
    inner = {"a": torch.ones(1)}
    assert unwrap({"model": {"state_dict": inner}, "x": 1}) is inner and unwrap(inner) is inner
    assert set(flatten({"layers": [torch.ones(1), {"b": torch.ones(1)}], "no": "text"})) == {
        "layers.0",
        "layers.1.b",
    }
