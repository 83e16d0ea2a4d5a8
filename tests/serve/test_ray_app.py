import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from fewer.core.errors import ConfigError, FileError
from fewer.serve.command import ServeRequest
from fewer.serve.limits import Gate
from fewer.serve.ray_app import _ray, deployment


class FakeServe:
    """Records what a deployment asks Ray for."""

    def deployment(self, **options: object):
        self.options = options
        return lambda cls: cls

    def ingress(self, build: object):
        self.build = build

        def wrap(cls: type) -> type:
            cls.bind = classmethod(lambda cls: cls)
            return cls

        return wrap


def test_replicas_share_one_absolute_folder_and_get_their_gpus(tmp_path: Path) -> None:
    serve = FakeServe()
    request = ServeRequest(replicas=3, gpus_per_replica=2.0, data=tmp_path / "data")
    deployment(serve, request, Gate())
    assert serve.options["num_replicas"] == 3
    assert serve.options["ray_actor_options"]["num_gpus"] == 2
    seen: list[ServeRequest] = []
    deployment(serve, request, Gate(), lambda one, gate: seen.append(one))
    serve.build()
    assert seen[0].replicas == 1 and seen[0].data.is_absolute()


def test_replicas_follow_the_load_between_two_numbers(tmp_path: Path) -> None:
    serve = FakeServe()
    deployment(serve, ServeRequest(replicas=2, max_replicas=6, data=tmp_path), Gate())
    assert "num_replicas" not in serve.options
    scaling = serve.options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 6)
    with pytest.raises(ConfigError, match="max-replicas 1"):
        deployment(serve, ServeRequest(replicas=2, max_replicas=1, data=tmp_path), Gate())


def test_the_cluster_file_of_the_docs_asks_for_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml")
    page = (Path(__file__).parents[2] / "docs" / "serve-cluster.md").read_text()
    files = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    (cluster,) = (file for file in files if "cluster_name" in file)
    assert cluster["provider"]["type"] == "local" and cluster["head_start_ray_commands"]
    (wanted,) = (file["applications"][0] for file in files if "applications" in file)
    module, _, name = wanted["import_path"].partition(":")
    serve = FakeServe()
    monkeypatch.setattr("fewer.serve.ray_app._ray", lambda: (None, serve))
    monkeypatch.setattr("fewer.serve.command.read_keys", lambda path: ("k" * 32,))
    getattr(importlib.import_module(module), name)(wanted["args"])
    assert serve.options["autoscaling_config"]["max_replicas"] > 1
    assert serve.options["ray_actor_options"]["num_gpus"] == 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_way_to_get_it_is_said() -> None:
    with pytest.raises(FileError, match=r"fewer\[ray\]") as caught:
        _ray()
    assert caught.value.exit_code == 4
