"""What stands before every handler: who may speak, how much, and from where. Plain ASGI, so bodies are
counted while they are read and a stream is never held back.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect

MAX_BODY_BYTES = 10 * 2**20
MAX_UPLOAD_BYTES = 2 * 2**30
BODY_SECONDS = 10.0
BODY_BYTES_A_SECOND = 1024
"""A body that comes slower than this, after its first `BODY_SECONDS`, is given up."""
MAX_OPEN = 512
"""Requests, streams and sockets that one key may have open at a time."""
URL_SECONDS = 3600
"""How long the address of a picture opens by itself."""
MAX_DEPTH = 32
MAX_KEYS = 1000
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may come in."""

    keys: tuple[str, ...] = ()
    """API keys; none means that everybody who reaches the address may."""
    hosts: tuple[str, ...] = LOCAL_NAMES
    """Names that the Host header may carry (against DNS rebinding); empty allows all."""
    addresses: bool = False
    """Let any IP address through as Host: no site can rebind a name to one."""

    def lets_in(self, host: str) -> bool:
        """Whether the Host header names this server. Capitals do not matter."""
        name = _name(host).lower()
        return not self.hosts or name in self.hosts or (self.addresses and _is_address(name))

    def signature(self, owner: str, path: str) -> str:
        """The query that opens `path` for an hour without a key; empty where none is needed."""
        key = next((key for key in self.keys if _identity(key) == owner), None)
        until = int(time.time()) + URL_SECONDS
        return "" if key is None else f"?until={until}&signature={_sign(key, path, until)}"

    def signer(self, path: str, query: bytes) -> str | None:
        """The identity whose signature the query carries, None if there is none that still holds."""
        told = parse_qs(query.decode("latin-1"), max_num_fields=8) if query.count(b"&") < 8 else {}
        until, given = told.get("until", [""])[0], told.get("signature", [""])[0]
        if not until.isascii() or not until.isdecimal() or len(until) > 12 or int(until) < time.time():
            return None
        signed = [
            key
            for key in self.keys
            if hmac.compare_digest(_sign(key, path, int(until)).encode(), given.encode())
        ]
        return _identity(signed[0]) if signed else None

    def owner(self, key: str | None) -> str | None:
        """The identity behind a key, None if there is none. Every key is compared in constant time."""
        if not self.keys:
            return "local"
        given = (key or "").encode()
        matches = [known for known in self.keys if hmac.compare_digest(known.encode(), given)]
        return _identity(matches[0]) if matches else None


def _identity(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _sign(key: str, path: str, until: int) -> str:
    return hmac.digest(key.encode(), f"{path} {until}".encode(), "sha256").hex()[:32]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def api_error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    """The error body of the OpenAI API, which every door uses."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Limits:
    """The middleware. `open_paths` need no key: the page itself and /health."""

    def __init__(self, app: Any, gate: Gate, open_paths: Sequence[str] = ("/", "/health", "/static")) -> None:
        self._app, self._gate, self._open = app, gate, tuple(open_paths)
        self._busy: Counter[str] = Counter()

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem is not None:
            await _refuse(scope, send, *problem)
            return
        who = scope["state"]["owner"]
        if who is None or self._is_open(scope["path"]):  # the page and /health, which are short
            await self._answer(scope, receive, send)
            return
        if self._busy[who] >= MAX_OPEN:
            said = f"{MAX_OPEN} requests are open already; end some of them first"
            await _refuse(scope, send, 429, api_error(said, "rate_limit_error", code="too_many_open"))
            return
        self._busy[who] += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._busy[who] -= 1

    async def _answer(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        most = _most(scope)
        counted = _Counted(receive, most)
        try:
            await self._app(scope, counted, _with_headers(send))
        except TooLarge:
            body = api_error(f"the body exceeds {most:,} bytes", "invalid_request_error")
            await _refuse(scope, send, 413, body)
        except TooSlow:
            body = api_error(f"the body did not come within {BODY_SECONDS:g} s", "invalid_request_error")
            await _refuse(scope, send, 408, body)
        except ClientDisconnect:  # it went away, or broke off, in the middle of its body
            return

    def _problem(self, scope: dict, headers: dict[bytes, str]) -> tuple[int, dict] | None:
        host = headers.get(b"host", "")
        if not self._gate.lets_in(host):
            said = f"host {host[:80]!r} is not served here; the server's --allowed-hosts names those that are"
            return 403, api_error(said, "invalid_request_error", "host")
        origin = headers.get(b"origin")
        # "null" is what a sandboxed frame of any site sends; the page itself never does.
        foreign = origin is not None and origin.split("://", 1)[-1].lower() != host.lower()
        if foreign or (headers.get(b"sec-fetch-site") == "cross-site" and scope["path"] != "/"):
            return 403, api_error("requests from other sites are refused", "invalid_request_error", "origin")
        length = headers.get(b"content-length", "0")
        most = _most(scope)
        if not length.isdigit() or int(length) > most:
            return 413, api_error(f"the body exceeds {most:,} bytes", "invalid_request_error")
        owner, path = self._gate.owner(_key(headers)), scope["path"]
        if owner is None and path.startswith("/files/"):
            owner = self._gate.signer(path, scope.get("query_string", b""))
        if owner is None and not self._is_open(path):
            return 401, api_error(
                "a valid API key is needed, as Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
            )
        scope.setdefault("state", {})["owner"] = owner
        return None

    def _is_open(self, path: str) -> bool:
        return path in self._open or any(path.startswith(f"{one}/") for one in self._open if one != "/")


class TooLarge(Exception):
    """The body is longer than it said."""


class TooSlow(Exception):
    """The body does not come."""


class _Counted:
    def __init__(self, receive: Any, most: int) -> None:
        self._receive, self._most, self._read, self._whole = receive, most, 0, False
        self._began = time.monotonic()

    async def __call__(self) -> dict:
        if self._whole:  # only the client's going away can come now, and that may take as long as it likes
            return await self._receive()
        spent = time.monotonic() - self._began
        patience = min(BODY_SECONDS, BODY_SECONDS + self._read / BODY_BYTES_A_SECOND - spent)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, patience))
        except TimeoutError as error:
            raise TooSlow from error
        self._read += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._read > self._most:
            raise TooLarge
        return message


def parse_body(raw: bytes) -> dict:
    """A JSON object within the limits on depth and keys. Raises `ValueError` with a sentence."""
    if raw.count(b"{") + raw.count(b"[") > MAX_KEYS * 10:
        raise ValueError("the body nests too many lists and objects")
    try:
        value = json.loads(raw.decode())  # strictly UTF-8: else halves of characters slip in
    except RecursionError as error:
        raise ValueError(f"the body is nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise ValueError("the body is not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")
    if b"\\ud" in raw.lower() and not _is_text(value):
        raise ValueError("the body holds half a character (a lone surrogate)")
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"the body is nested deeper than {MAX_DEPTH}")
    if _keys(value) > MAX_KEYS:
        raise ValueError(f"the body has more than {MAX_KEYS} keys")
    return value


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: object, level: int = 1) -> int:
    if level > MAX_DEPTH or not isinstance(value, dict | list):
        return level
    children = value.values() if isinstance(value, dict) else value
    return max((_depth(child, level + 1) for child in children), default=level)


def _keys(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    return sum(map(_keys, value)) if isinstance(value, list) else 0


def _most(scope: dict) -> int:
    """Only a video may be long, and only where files are taken."""
    return MAX_UPLOAD_BYTES if scope["path"] == "/uploads" else MAX_BODY_BYTES


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0] if not host.endswith("]") else host


def _key(headers: dict[bytes, str]) -> str | None:
    scheme, _, key = headers.get(b"authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key")


def _with_headers(send: Any) -> Any:
    async def wrapped(message: dict) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_HEADERS.items()]
        await send(message)

    return wrapped


async def _refuse(scope: dict, send: Any, status: int, body: dict) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4401 if status == 401 else 4403})
        return
    raw = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS.items()]})
    await send({"type": "http.response.body", "body": raw})
