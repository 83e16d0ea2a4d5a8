"""The official `openai` package, unchanged, against a real port: pictures, streams, each error."""

import base64
from collections.abc import Callable

import pytest

openai = pytest.importorskip("openai", reason="the openai package is not installed")

KEY = "k" * 32


@pytest.fixture
def connect(listen: Callable[..., str]) -> Callable[..., object]:
    """`connect(**app options)` gives OpenAI's client of a listening server."""

    def start(**options: object) -> object:
        return openai.OpenAI(base_url=f"{listen(**options)}/v1", api_key=KEY, max_retries=0, timeout=30)

    return start


def test_pictures_previews_and_models(connect) -> None:
    with connect(keys=(KEY,), seconds=0.05) as client:
        assert [model.id for model in client.models.list()] == ["default"]
        answer = client.images.generate(
            prompt="a cat", n=2, size="64x64", quality="high", extra_body={"seed": 5, "steps": 2}
        )
        assert [base64.b64decode(image.b64_json)[:4] for image in answer.data] == [b"\x89PNG"] * 2
        assert answer.data[0].seed == 5 and answer.size == "8x8" and answer.output_format == "png"
        assert answer.usage.total_tokens == 0
        stream = client.images.generate(prompt="a cat", stream=True, partial_images=2)
        events = list(stream)
        assert [event.type for event in events] == [
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert base64.b64decode(events[-1].b64_json)[:4] == b"\x89PNG"


def test_each_error_is_the_exception_that_people_catch(connect) -> None:
    with connect(keys=(KEY,)) as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            client.images.generate(prompt="a cat", size="huge")
        assert wrong.value.param == "size" and "1024x1024" in wrong.value.message
        with pytest.raises(openai.BadRequestError, match="mystery"):
            client.images.generate(prompt="a cat", extra_body={"mystery": 1})
        with pytest.raises(openai.AuthenticationError) as stranger:
            client.with_options(api_key="x" * 32).images.generate(prompt="a cat")
        assert stranger.value.code == "invalid_api_key"
        with pytest.raises(openai.NotFoundError) as absent:
            client.images.generate(prompt="a cat", model="gpt-image-1")
        assert absent.value.code == "model_not_found"
        with pytest.raises(openai.InternalServerError) as memory:
            client.images.generate(prompt="too big")
        assert memory.value.status_code == 507 and "try size 1024" in memory.value.message
        with pytest.raises(openai.InternalServerError, match="RuntimeError"):
            client.images.generate(prompt="broken")
        with pytest.raises(openai.APIError, match="try size 1024"):  # a failure in the middle of a stream
            list(client.images.generate(prompt="too big", stream=True))


def test_a_full_queue_is_a_rate_limit_with_a_time_to_come_back(connect) -> None:
    with connect(keys=(KEY,), limit=0, start=False) as client:
        with pytest.raises(openai.RateLimitError) as full:
            client.images.generate(prompt="a cat")
        assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) > 0


def test_a_cancelled_picture_is_not_drawn_again_by_the_client_s_own_retries(listen) -> None:
    from threading import Thread

    import httpx

    url = listen(seconds=0.1)
    heard: list[Exception] = []

    def ask() -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=30) as client:  # it retries twice
            assert client.models.retrieve("default").id == "default"
            try:
                client.images.generate(prompt="long", extra_body={"steps": 200})
            except openai.OpenAIError as error:
                heard.append(error)

    thread = Thread(target=ask)
    thread.start()
    with httpx.Client(base_url=url, timeout=30) as http:
        while not (jobs := http.get("/jobs").json()["jobs"]):
            assert thread.is_alive()
        http.delete(f"/jobs/{jobs[0]['id']}")
        thread.join(20)
        assert len(http.get("/jobs").json()["jobs"]) == 1
    assert isinstance(heard[0], openai.ConflictError) and heard[0].code == "cancelled"
