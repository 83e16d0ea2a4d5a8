import json
from pathlib import Path

import pytest
import torch

from fewer.core.errors import FileError
from fewer.core.info import InfoRequest, info_command
from fewer.core.progress import SilentProgress


def test_info_is_json_and_true(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    facts = json.loads(json.dumps(info_command(InfoRequest(models=tmp_path), SilentProgress())))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0]["name"] == "cpu"
    assert "mine" in facts["models"] and facts["stored_as"]["mine"] == "no weights"
    assert facts["stored_as"]["default"].startswith("packaged: 4.")
    with pytest.raises(FileError, match="'nowhere' is no folder") as caught:
        info_command(InfoRequest(models=tmp_path / "nowhere"), SilentProgress())
    assert caught.value.exit_code == 4
