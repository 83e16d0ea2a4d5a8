import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest

uvicorn = pytest.importorskip("uvicorn")

from fewer.serve.patience import PatientProtocol  # noqa: E402


class Hasty(PatientProtocol):
    header_seconds = 0.4


async def hello(scope: dict, receive, send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port() -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(hello, port=0, log_level="error", lifespan="off", http=Hasty))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def all_of(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(4096):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nhost: a\r\nx: "])
def test_headers_that_do_not_come_end_the_connection(port: int, start: bytes) -> None:
    with connect(port) as client:
        client.sendall(start)
        began = time.monotonic()
        assert all_of(client).startswith(b"HTTP/1.1 408 ")
        assert 0.3 < time.monotonic() - began < 5


def test_dripping_headers_do_not_buy_time(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 5:
                client.sendall(b"x: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


def test_a_quick_client_is_answered_again_and_again(port: int) -> None:
    with connect(port) as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"hi"):
                answer += client.recv(4096)
            time.sleep(0.5)  # an idle connection is not a slow one
        client.sendall(b"GET / HTTP/1.1\r\nhost")
        assert b"408" in all_of(client)
