import base64
import io
import json
import time

import pytest
from PIL import Image

KEY, OTHER = "k" * 32, "o" * 32
URL = "/v1/images/generations"


def test_a_picture_comes_back_as_the_client_library_expects(serve) -> None:
    client = serve()
    answer = client.post(URL, json={"prompt": "a cat", "n": 2, "seed": 5, "steps": 2})
    body = answer.json()
    assert answer.status_code == 200, body
    assert [entry["seed"] for entry in body["data"]] == [5, 6]
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as picture:
        assert picture.size == (8, 8)
    assert body["output_format"] == "png" and body["size"] == "8x8" and body["created"] > 0


@pytest.mark.parametrize("form", ["b64_json", "url"])
def test_a_prompt_that_was_said_in_other_words_is_told(serve, form: str) -> None:
    client, body = serve(), {"prompt": "a puppy", "response_format": form}
    answer = client.post(URL, json=body)
    assert answer.json()["data"][0]["revised_prompt"] == "a dog"
    assert (
        client.get(f"/jobs/{answer.headers['x-fewer-job']}").json()["images"][0]["revised_prompt"] == "a dog"
    )
    for change in ({"as_written": True}, {"prompt": "a cat"}):
        assert "revised_prompt" not in client.post(URL, json=body | change).json()["data"][0]
    with client.stream("POST", URL, json=body | {"stream": True}) as streamed:
        text = "".join(streamed.iter_text())
    assert json.loads(text.split("data: ")[-1])["revised_prompt"] == "a dog"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_and_addresses(serve, kind: str) -> None:
    client = serve()
    body = {"prompt": "a cat", "output_format": kind, "output_compression": 40, "response_format": "url"}
    url = client.post(URL, json=body).json()["data"][0]["url"]
    answer = client.get(url)
    assert answer.headers["content-type"] == f"image/{kind}"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.format == kind.upper()


def test_streaming_gives_partial_images_then_the_picture(serve) -> None:
    body = {"prompt": "a cat", "stream": True, "partial_images": 1}
    with serve(seconds=0.05).stream("POST", URL, json=body) as answer:
        text = "".join(answer.iter_text())
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert events[0]["partial_image_index"] == 0 and base64.b64decode(events[1]["b64_json"])[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "0x10"}, "size"),
        ({"size": "10x"}, "size"),
        ({"size": "8192x8192"}, "size"),
        ({"lora": ["none"]}, "lora"),
        ({"size": "٣x٣"}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"seed": "9223372036854775808"}, "seed"),
        ({"seed": "-1"}, "seed"),
        ({"seed": "1.5"}, "seed"),
        ({"seed": ""}, "seed"),
        ({"seed": "٣"}, "seed"),
        ({"steps": 0}, "steps"),
        ({"guidance": -1}, "guidance"),
        ({"output_format": "gif"}, "output_format"),
        ({"partial_images": 4}, "partial_images"),
        ({"background": "transparent"}, "background"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_field_is_named(serve, change: dict, param: str) -> None:
    answer = serve(start=False).post(URL, content=json.dumps({"prompt": "a"} | change))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("seed", [2**53 + 1, "9007199254740993", "0009007199254740993"])
def test_a_seed_keeps_all_its_digits(serve, seed: int | str) -> None:
    client = serve()
    answer = client.post(URL, json={"prompt": "a", "seed": seed, "steps": 1})
    assert [entry["seed"] for entry in answer.json()["data"]] == [2**53 + 1]


@pytest.mark.parametrize(
    "raw", [b'{"prompt": "a", "guidance": NaN}', b"{", b"[]", b'{"prompt": "a", "n": 1e400}']
)
def test_bodies_that_are_no_request(serve, raw: bytes) -> None:
    assert serve(start=False).post(URL, content=raw).status_code == 400


def test_a_model_that_is_not_served(serve) -> None:
    answer = serve(start=False).post(URL, json={"prompt": "a", "model": "../etc"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("prompt", "status", "said"),
    [
        ("too big", 507, "try size 1024"),
        ("out of memory", 507, "smaller size"),
        ("broken", 500, "RuntimeError"),
    ],
)
def test_failures_have_their_status_leak_nothing_and_the_next_job_succeeds(
    serve, prompt: str, status: int, said: str
) -> None:
    client = serve()
    answer = client.post(URL, json={"prompt": prompt})
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert client.post(URL, json={"prompt": "small"}).status_code == 200


def test_a_full_queue_answers_at_once_with_a_time_to_come_back(serve) -> None:
    client = serve(limit=3, start=False)
    for _ in range(3):
        assert client.post("/jobs", json={"prompt": "a"}).status_code == 202
    began = time.perf_counter()
    answer = client.post(URL, json={"prompt": "a"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert time.perf_counter() - began < 0.5


def test_the_same_idempotency_key_draws_once(serve, tmp_path) -> None:
    client = serve()
    answers = [
        client.post(URL, json={"prompt": "once"}, headers={"idempotency-key": "abc"}).headers["x-fewer-job"]
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert (tmp_path / "log").read_text().count("once") == 1


def test_an_idempotency_key_belongs_to_one_request(serve) -> None:
    client = serve()
    key = {"idempotency-key": "abc"}
    first = client.post(URL, json={"prompt": "once"}, headers=key)
    again = client.post(URL, json={"prompt": "once", "response_format": "url"}, headers=key)
    assert again.headers["x-fewer-job"] == first.headers["x-fewer-job"]
    other = client.post(URL, json={"prompt": "twice"}, headers=key)
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_previews_come_in_the_format_that_was_asked_for(serve) -> None:
    body = {"prompt": "a cat", "stream": True, "partial_images": 1, "output_format": "jpeg"}
    with serve(seconds=0.05).stream("POST", URL, json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    for event in events:
        assert event["output_format"] == "jpeg" and base64.b64decode(event["b64_json"])[:2] == b"\xff\xd8"


def test_one_key_cannot_read_what_another_has_drawn(serve) -> None:
    client = serve(keys=(KEY, OTHER))
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER))
    body = {"prompt": "private", "response_format": "url"}
    signed = client.post(URL, json=body, headers=mine).json()["data"][0]["url"]
    assert signed.startswith("http://127.0.0.1/files/")
    url, _, query = signed.partition("?")
    assert client.get(url, headers=mine).status_code == 200
    assert client.get(url, headers=theirs).status_code == 404
    assert client.get(url).status_code == 401
    assert client.get(signed).status_code == 200, "as OpenAI's addresses, it opens by itself"
    for wrong in (query.replace("signature=", "signature=0"), "until=9999999999&" + query.partition("&")[2]):
        assert client.get(f"{url}?{wrong}").status_code == 401
    assert client.get(f"{url.replace('0.png', '1.png')}?{query}").status_code == 401
    assert client.get(f"/jobs?{query}").status_code == 401, "it opens that picture and nothing else"
    assert "private" not in client.get("/jobs", headers=theirs).text
