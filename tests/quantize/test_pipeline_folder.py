from pathlib import Path

import pytest

from fewer.core.errors import ConfigError, FileError
from fewer.core.files import write_json
from fewer.quantize.pipeline_folder import note_pipeline, pipeline_of

QUANTIZED = {"quantization_config": {"quant_method": "fewer"}}


def pipeline_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "model_index.json", {"_class_name": "SanaPipeline"})
    return folder


def test_the_pipeline_is_found_from_wherever_both_folders_are_moved_together(tmp_path: Path) -> None:
    home = pipeline_at(tmp_path / "models" / "sixteen")
    staged, final = tmp_path / "work" / "staged", tmp_path / "models" / "four"
    staged.mkdir(parents=True)
    write_json(staged / "config.json", QUANTIZED)
    note_pipeline(staged, str(home), final)
    staged.rename(final)
    assert pipeline_of(final) == str(home)
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert pipeline_of(tmp_path / "elsewhere" / "four") == str(tmp_path / "elsewhere" / "sixteen")


def test_the_built_in_model_is_called_by_its_name(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", QUANTIZED)
    note_pipeline(tmp_path, "default", tmp_path)
    assert pipeline_of(tmp_path) == "default"


def test_other_folders_are_not_quantized_pipelines(tmp_path: Path) -> None:
    assert pipeline_of(tmp_path / "nowhere") is None
    assert pipeline_of(pipeline_at(tmp_path / "pipeline")) is None
    write_json(tmp_path / "config.json", {"_class_name": "UNet2DConditionModel"})
    assert pipeline_of(tmp_path) is None


@pytest.mark.parametrize("told", [None, {"pipeline": 3}, {}])
def test_a_network_that_names_no_pipeline_is_said(tmp_path: Path, told: object) -> None:
    write_json(tmp_path / "config.json", QUANTIZED)
    if told is not None:
        write_json(tmp_path / "pipeline.json", told)
    with pytest.raises(ConfigError, match="does not say which pipeline"):
        pipeline_of(tmp_path)


def test_a_pipeline_that_is_gone_is_missing(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", QUANTIZED)
    write_json(tmp_path / "pipeline.json", {"pipeline": "../gone"})
    with pytest.raises(FileError, match=r"\.\./gone") as caught:
        pipeline_of(tmp_path)
    assert caught.value.missing
