import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fewer.core.device import (
    _room_of_container,
    available_memory,
    isolated_randomness,
    pick_device,
    pick_dtype,
    require_memory,
    seeded,
)
from fewer.core.errors import CapacityError, ConfigError


def test_same_seed_same_numbers_and_streams_differ() -> None:
    draws = [torch.rand(8, generator=seeded(5, *stream)) for stream in [(), (), (0,), (1,), (0, 1)]]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_outside_its_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="outside"):
        seeded(seed)


def test_isolated_randomness_repeats_inside_and_leaves_no_trace() -> None:
    before = (random.getstate(), torch.random.get_rng_state(), np.random.get_state()[1].copy())
    drawn = []
    for _ in range(2):
        with isolated_randomness(3):
            drawn.append((random.random(), float(torch.rand(())), float(np.random.rand())))
    assert drawn[0] == drawn[1]
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("bf16", torch.device("cpu")) is torch.bfloat16
    with pytest.raises(ConfigError, match="allowed"):
        pick_dtype("int3", torch.device("cpu"))
    with pytest.raises(ConfigError, match="not known"):
        pick_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            pick_device("cuda")


def test_a_container_has_what_is_below_its_limit_and_pages_of_files_give_way(tmp_path: Path) -> None:
    assert _room_of_container(tmp_path) == 2**63
    for name, text in (("max", "1000\n"), ("current", "900\n"), ("stat", "anon 200\ninactive_file 600\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _room_of_container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert _room_of_container(tmp_path) == 2**63


def test_memory_is_refused_before_it_is_taken() -> None:
    cpu = torch.device("cpu")
    assert available_memory(cpu) > 2**20
    require_memory(1, cpu, "")
    with pytest.raises(CapacityError, match="try size 512"):
        require_memory(2**60, cpu, "try size 512")
