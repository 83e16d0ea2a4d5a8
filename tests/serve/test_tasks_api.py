"""Files sent, work asked for, results fetched: through the app, with the real engine behind it."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from fewer.learn.model_folder import TrainedClassifier
from fewer.learn.networks import NetworkPlan, build_network
from fewer.serve.command import ServeRequest, app_of
from fewer.serve.limits import Gate

from .test_queue_api import wait_for

KEYS = ("a" * 16, "b" * 16)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    plan = NetworkPlan(name="small-cnn", channels=3, classes=2, height=8, width=8)
    network = build_network(plan).eval()
    TrainedClassifier(network, plan, ("ill", "well"), torch.zeros(3), torch.ones(3)).save(tmp_path / "lungs")
    request = ServeRequest(data=tmp_path / "data", models=(f"lungs={tmp_path / 'lungs'}",), device="cpu")
    headers = {"host": "127.0.0.1", "authorization": f"Bearer {KEYS[0]}"}
    app = app_of(request, Gate(KEYS))
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
        yield client


def picture() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.timeout(120)
def test_from_file_to_answer(client: TestClient) -> None:
    sent = client.post("/uploads?suffix=.png", content=picture())
    assert sent.status_code == 201 and sent.json()["bytes"] == len(picture())
    name = sent.json()["id"]
    asked = client.post("/jobs/classify", json={"uploads": [name], "model": "lungs"})
    assert asked.status_code == 202, asked.text
    facts = wait_for(client, asked.json()["id"], "done", "failed", seconds=60)
    assert facts["state"] == "done", facts
    assert facts["kind"] == "classify" and facts["facts"]["predictions"][0]["class"] in ("ill", "well")
    table = client.get(facts["files"][0])
    assert table.text.startswith("picture,class,ill,well\n" + name)
    assert "attachment" in table.headers["content-disposition"]

    other = {"authorization": f"Bearer {KEYS[1]}"}
    assert client.get(facts["files"][0], headers=other).status_code == 404
    body = {"upload": name}
    assert client.post("/jobs/reconstruct", json=body, headers=other).status_code == 404, "not theirs"
    back = client.post("/jobs/reconstruct", json=body).json()["id"]
    facts = wait_for(client, back, "done", "failed", seconds=60)
    assert client.get(facts["files"][0]).content[:4] == b"\x89PNG"
    wrong = client.post("/jobs/suggest", json={"history": ["1"], "model": "lungs"})
    assert wrong.status_code == 400 and "kind classifier" in wrong.json()["error"]["message"]
    assert client.post("/jobs", json={"prompt": "a", "model": "lungs"}).status_code == 400, "it draws nothing"
    assert client.delete(f"/uploads/{name}").json()["deleted"]
    assert client.delete(f"/uploads/{name}").status_code == 404


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/jobs/classify", {"uploads": ["0" * 32 + ".png"], "model": "lungs"}, 404, "no upload"),
        ("/jobs/classify", {"uploads": [], "model": "lungs"}, 400, "uploads"),
        ("/jobs/reconstruct", {"upload": "../../jobs.sqlite"}, 404, "no upload"),
        ("/jobs/stitch", {"upload": "x", "fov": 400}, 400, "fov"),
        ("/jobs/stitch", {"upload": "x", "source": "/etc/passwd"}, 400, "source"),
        ("/jobs/suggest", {"history": ["1"], "model": "none"}, 404, "lungs"),
        ("/uploads?suffix=.sh", {}, 400, ".mp4"),
    ],
)
def test_bad_requests_are_named(client: TestClient, path: str, body: dict, status: int, said: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text
