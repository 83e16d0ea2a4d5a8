from pathlib import Path

import pytest
import torch
from PIL import Image

from fewer.core.errors import ConfigError, DataError
from fewer.learn.domains.images import load_domains

DATA = Path(__file__).parents[3] / "data" / "emoji-styles"


def test_the_emoji_styles_set_has_the_counts_of_its_readme() -> None:
    domains = load_domains(DATA)
    assert domains.names == ("contrast", "flat", "noto", "openmoji", "twemoji")
    assert {len(data) for data in domains.images} == {1586}
    assert len(domains.class_names) == 8
    people = domains.class_names.index("people-body")
    assert int(domains.images[0].counts()[people]) == 342
    assert domains.unseen is not None
    assert 0.15 < float(domains.unseen[0].float().mean()) < 0.25
    assert domains.images[1].size == (32, 32)
    # One object, five drawings: the same label everywhere, never the same picture.
    assert all(torch.equal(data.labels, domains.images[0].labels) for data in domains.images)
    assert not torch.equal(domains.images[1].images, domains.images[2].images)


def small(folder: Path, sheets: int = 2) -> None:
    rows = ["index,codepoints,name,group,subgroup,object_split"]
    rows += [f"{k},x,n{k},g{k % 2},s{k % 4},{'test' if k > 30 else 'train'}" for k in range(40)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for sheet in range(sheets):
        picture = Image.new("RGB", (160, 4))
        for k in range(40):
            picture.paste((k, sheet * 50, 9), (4 * k, 0, 4 * k + 4, 4))
        picture.save(folder / f"style{sheet}.png")


@pytest.mark.parametrize(("task", "classes"), [("group8", 2), ("subgroup", 4), ("identity", 40)])
def test_tiles_and_tasks(task: str, classes: int, tmp_path: Path) -> None:
    small(tmp_path)
    domains = load_domains(tmp_path, task=task)
    assert len(domains.class_names) == classes
    assert domains.images[1].images[:, 0, 0, 0].tolist() == list(range(40))
    assert set(domains.images[1].images[:, 2, 3, 1].tolist()) == {50}
    assert load_domains(tmp_path, task=task, size=6).images[0].size == (6, 6)


def test_what_does_not_fit(tmp_path: Path) -> None:
    small(tmp_path, sheets=1)
    with pytest.raises(DataError, match="1 sheet found"):
        load_domains(tmp_path)
    small(tmp_path)
    with pytest.raises(ConfigError, match="group8, subgroup, identity"):
        load_domains(tmp_path, task="colour")
    Image.new("RGB", (161, 4)).save(tmp_path / "style1.png")
    with pytest.raises(DataError, match="no sheet of 40 tiles"):
        load_domains(tmp_path)
    (tmp_path / "labels.csv").write_text("index,name,group,subgroup,object_split\n0,n,a,b,train\n")
    with pytest.raises(DataError, match="no class of task 'group8' is left; one needs at least 9 objects"):
        load_domains(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "\ufeffindex,name,group,subgroup,object_split\n²,n,a,b,train\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="line 2: index must be a number"):
        load_domains(tmp_path)
    (tmp_path / "labels.csv").write_text("index,group\n1,a\n")
    with pytest.raises(DataError, match="columns"):
        load_domains(tmp_path)
