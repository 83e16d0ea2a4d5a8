import json
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError
from fewer.generate.large_edition import FOLDER, LargeEdition, open_large


def test_the_nearest_shape_is_taken() -> None:
    edition = LargeEdition(sizes=((512, 512), (384, 640), (640, 384)))
    assert edition.nearest(500, 512) == (512, 512)
    assert edition.nearest(300, 1000) == (384, 640)
    assert edition.nearest(1024, 600) == (640, 384)


def test_a_folder_without_has_none_and_bad_sizes_are_refused(tmp_path: Path) -> None:
    assert open_large(tmp_path, 32) is None
    (tmp_path / FOLDER).mkdir(parents=True)
    for sizes in ([[512, 500]], []):
        (tmp_path / FOLDER / "large.json").write_text(json.dumps({"sizes": sizes}))
        with pytest.raises(ConfigError):
            open_large(tmp_path, 32)
