"""Icons are drawn alike in one process and in many."""

import numpy as np
import pytest

from fewer.core.errors import ConfigError
from fewer.generate.scenes import drawing
from fewer.generate.scenes.drawing import draw_icons, icon_svg

ICONS = {"prefix": "noto", "width": 10, "icons": {"a": {"body": '<circle cx="3" cy="3" r="2" fill="#0f0"/>'}}}


def test_many_processes_draw_what_one_draws(monkeypatch) -> None:
    pytest.importorskip("resvg_py", reason="the extra build-model is not installed")
    svgs = [icon_svg(ICONS, "a", 16), icon_svg(ICONS, "a", 16).replace("#0f0", "#00f")]
    alone = draw_icons(svgs, 16)
    monkeypatch.setattr(drawing, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(drawing.os, "cpu_count", lambda: 3)
    assert np.array_equal(draw_icons(svgs, 16), alone)
    assert tuple(alone[0, 8, 8]) == (0, 255, 0, 255) and tuple(alone[1, 8, 8]) == (0, 0, 255, 255)


def test_an_unknown_name_says_where_it_was_looked_for() -> None:
    with pytest.raises(ConfigError, match="'b' is not in 'noto'"):
        icon_svg(ICONS, "b", 16)
