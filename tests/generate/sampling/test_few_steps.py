"""Levels and settings of a few-step edition."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError
from fewer.generate.sampling.few_steps import (
    FOLDER,
    FewSteps,
    few_step_levels,
    open_few_steps,
    write_few_steps,
)


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 6.0])
def test_levels_fall_to_zero_and_are_among_those_of_most_steps(shift: float) -> None:
    grids = few_step_levels(shift)
    for steps, grid in enumerate(grids, 1):
        assert len(grid) == steps + 1
        assert grid[-1] == 0
        assert all(above > below for above, below in pairwise(grid))
        assert set(grid) <= set(grids[-1])


def test_settings_come_back_and_name_their_weights(tmp_path: Path) -> None:
    settings = FewSteps(levels=few_step_levels(3.0), guidance=4.0)
    folder = write_few_steps(tmp_path, settings)
    found = open_few_steps(tmp_path)
    assert folder == tmp_path / FOLDER
    assert found is not None
    assert found.weights is not None
    assert (found.levels, found.guidance, found.weights.parent) == (settings.levels, 4.0, folder)


def test_a_model_without_one_has_none(tmp_path: Path) -> None:
    assert open_few_steps(tmp_path) is None


@pytest.mark.parametrize("levels", [[], [[0.9]], [[0.9, 0.1]], [[1.2, 0.0]], [[0.5, 0.0], [0.5, 0.6, 0.0]]])
def test_levels_that_are_none_are_refused(tmp_path: Path, levels: list) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "few_steps.json").write_text(json.dumps({"levels": levels, "guidance": 3.0}))
    with pytest.raises(ConfigError, match="levels"):
        open_few_steps(tmp_path)
