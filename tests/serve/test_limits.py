import contextlib

import httpx
import pytest

from fewer.serve.limits import MAX_BODY_BYTES, MAX_DEPTH, Gate, parse_body

KEY, OTHER = "k" * 32, "o" * 32


def test_without_keys_everybody_is_local_and_with_keys_nobody_is_without() -> None:
    assert Gate().owner(None) == "local"
    gate = Gate((KEY, OTHER))
    assert gate.owner(None) is None and gate.owner("wrong") is None
    assert gate.owner(KEY) != gate.owner(OTHER) is not None
    assert KEY not in str(gate.owner(KEY))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"1", b"{", b"\xff", b'{"a":' * 40 + b"1" + b"}" * 40, b'{"a":' * 100_000]
)
def test_bodies_beyond_the_limits_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="body"):
        parse_body(raw)


def test_depth_and_keys_at_the_limit_pass() -> None:
    deep = b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1)
    assert parse_body(deep)
    import json

    assert parse_body(json.dumps({str(n): n for n in range(1000)}).encode())
    with pytest.raises(ValueError, match="1000 keys"):
        parse_body(json.dumps({str(n): n for n in range(1001)}).encode())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_other_hosts_are_refused(serve, host: str) -> None:
    assert serve().get("/health", headers={"host": host}).status_code == 403


def test_other_sites_are_refused_and_our_own_is_not(serve) -> None:
    client = serve()
    assert client.get("/jobs", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/jobs", headers={"origin": "http://127.0.0.1"}).status_code == 200
    assert client.post("/jobs", headers={"origin": "null"}, json={"prompt": "a"}).status_code == 403
    assert client.get("/jobs", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_body_that_grows_while_it_is_read_is_cut_off(serve) -> None:
    def chunks():
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield b" " * 2**20

    answer = serve().post("/jobs", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert serve().post("/jobs", content=b"{}", headers={"content-length": "99999999999"}).status_code == 413


def test_keys_open_doors_and_the_page_needs_none(serve) -> None:
    client = serve(keys=(KEY,))
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    for path in ("/", "/static/app.js", "/health"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_body_that_does_not_come_is_given_up(listen, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("fewer.serve.limits.BODY_SECONDS", 0.3)
    host, port = listen(start=False).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_half_a_character_is_refused_wherever_it_stands() -> None:
    for body in (rb'{"a": "\ud800"}', rb'{"\uDFFF": 1}', rb'{"a": [{"b": "x\ud83d"}]}'):
        with pytest.raises(ValueError, match="half a character"):
            parse_body(body)
    assert parse_body(rb'{"a": "\ud83d\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_half_characters_do_not_slip_in_by_another_encoding() -> None:
    broken = (b'{"a": "\xed\xa0\x80"}', '{"a": "\\ud800"}'.encode("utf-16"), '{"a": "b"}'.encode("utf-16-le"))
    for body in broken:
        with pytest.raises(ValueError, match="body"):
            parse_body(body)


def test_hosts_are_names_whatever_their_capitals_and_addresses_only_where_meant() -> None:
    assert Gate().lets_in("LOCALHOST:8000") and Gate().lets_in("[::1]:8000")
    assert not Gate().lets_in("10.0.0.7:8000") and not Gate().lets_in("")
    open_to_all = Gate((), (*Gate().hosts, "studio.local"), addresses=True)
    for host in ("10.0.0.7:8000", "[fe80::1]:8000", "studio.local", "127.0.0.1"):
        assert open_to_all.lets_in(host)
    for host in ("evil.example", "10.0.0.7.evil.example", "[evil]", "1"):
        assert not open_to_all.lets_in(host)


def test_a_body_that_drips_buys_no_time(listen, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import time

    monkeypatch.setattr("fewer.serve.limits.BODY_SECONDS", 0.4)
    host, port = listen(start=False).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        slow.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < 8:
            try:
                slow.sendall(b" ")
                answer = slow.recv(1000)
            except TimeoutError:
                continue
        assert b" 408 " in answer and time.monotonic() - began < 5


def test_one_key_cannot_hold_every_connection(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewer.serve.limits.MAX_OPEN", 1)
    client = serve(keys=(KEY, OTHER))
    mine = {"authorization": f"Bearer {KEY}"}
    with client.websocket_connect("/ws", headers=mine | {"host": "127.0.0.1"}) as socket:
        assert socket.receive_json()["type"] == "status"
        refused = client.get("/jobs", headers=mine)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "too_many_open"
        assert client.get("/jobs", headers={"authorization": f"Bearer {OTHER}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/health", headers=mine).status_code == 200


def test_a_body_that_breaks_off_is_no_error_of_ours(listen, caplog: pytest.LogCaptureFixture) -> None:
    import socket

    url = listen(start=False)
    host, port = url.removeprefix("http://").split(":")
    for rest in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as rude:
            rude.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n" + rest)
            rude.settimeout(0.5)
            with contextlib.suppress(OSError):
                assert b" 500 " not in rude.recv(1000)
    assert httpx.get(f"{url}/health").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]
