import importlib.util
from pathlib import Path

import pytest

from fewer.core.errors import FileError
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


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_way_to_get_it_is_said() -> None:
    with pytest.raises(FileError, match=r"fewer\[ray\]") as caught:
        _ray()
    assert caught.value.exit_code == 4
