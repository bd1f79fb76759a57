"""Who means no good over HTTP: foreign pages, false hosts, floods, tricks with paths, those who never end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from daemon.http.gateway import Gateway
from daemon.http.guard import Guard, Rules
from daemon.settings.schema import ApiSettings, HttpSettings
from daemon.settings.sources import ConfigError
from tests.daemon.daemons import Daemon
from tests.daemon.gateways import address, asker, finished, with_http
from tests.stages.harness import write_squares

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, httpx.Client, str]]:
    base = tmp_path_factory.mktemp("hostile")
    token = base / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    clip = write_squares(base / "clip.mp4", 20)
    sets = (f"http.token={token}", 'http.origins=["https://app.example.org"]', 'http.hosts=["studio"]')
    with (
        with_http(base, *sets, "api.max_message_mb=1") as daemon,
        asker(daemon, headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        job = http.post("/v1/jobs", json={"path": str(clip)}).json()["job"]["id"]
        assert finished(http, job)["state"] == "done"
        yield daemon, http, job


def name(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["name"])


def test_the_token(world: tuple[Daemon, httpx.Client, str]) -> None:
    daemon, http, job = world
    with asker(daemon) as stranger:
        for path in (
            "/v1/jobs",
            "/v1/health",
            "/health",
            "/metrics",
            f"/v1/jobs/{job}/files/summary.json",
            "/docs",
        ):
            answer = stranger.get(path)
            assert answer.status_code == 401 and name(answer) == "no-token"
            assert stranger.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert stranger.get(path, headers={"Authorization": "Bearer tök".encode()}).status_code == 401
            assert stranger.get(path, headers={"Cookie": "poseward=wrong"}).status_code == 401
        assert stranger.post("/v1/session").status_code == 401
        made = stranger.post("/v1/session", headers={"Authorization": f"Bearer {TOKEN}"})
        assert made.status_code == 204 and TOKEN not in made.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in made.headers["set-cookie"].split(";")}
        assert stranger.get("/v1/jobs").status_code == 200
    assert http.get("/v1/jobs").status_code == 200


def test_other_sites_pages(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, _ = world
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"):
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/drain"), ("OPTIONS", "/v1/jobs")):
            answer = http.request(method, path, headers={"Origin": origin})
            assert answer.status_code == 403 and name(answer) == "origin-refused"
            assert "access-control-allow-origin" not in answer.headers
    sent = http.post("/v1/drain", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})
    assert name(sent) == "origin-refused"
    form = http.post("/v1/drain", content=b'{"on": true}', headers={"Content-Type": "text/plain"})
    assert name(form) == "bad-request"
    own = {"Origin": "https://app.example.org"}
    asked = http.request("OPTIONS", "/v1/jobs", headers=own)
    assert asked.status_code == 204 and asked.headers["access-control-allow-origin"] == own["Origin"]
    assert http.get("/v1/jobs", headers=own).headers["access-control-allow-origin"] == own["Origin"]
    assert not http.get("/v1/health").json()["draining"]


def test_false_hosts(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, _ = world
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "a b",
        "studio.evil",
        "@studio",
    ):
        answer = http.get("/v1/hello", headers={"Host": host})
        assert answer.status_code in (400, 403), host
    for host in ("localhost:99", "127.0.0.1", "[::1]:80", "192.168.1.7", "studio"):
        assert http.get("/v1/hello", headers={"Host": host}).status_code == 200, host


def test_too_much(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, _ = world
    much = b"x" * (2 << 20)
    for method, path in (
        ("POST", "/v1/jobs"),
        ("POST", "/v1/image"),
        ("POST", "/pose/hybrid"),
        ("POST", "/v1/uploads"),
    ):
        answer = http.request(method, path, content=much, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and name(answer) == "too-large", path
        chunked = http.request(method, path, content=iter([much]), headers={"Content-Type": "application/json"})
        assert chunked.status_code == 413, path
    deep = json.dumps({"path": 1}).replace("1", "[" * 500 + "]" * 500)
    assert name(http.post("/v1/jobs", content=deep, headers={"Content-Type": "application/json"})) == "bad-request"
    deepest = "[" * 100_000
    assert (
        name(http.post("/v1/jobs", content=deepest, headers={"Content-Type": "application/json"})) == "bad-request"
    )
    over = {"name": "a", "size": 1 << 60, "sha256": "0" * 64}
    assert name(http.post("/v1/uploads", json=over)) == "too-large"


def test_odd_arguments(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, job = world
    for values in (
        {"path": 3},
        {"nothing": 1},
        {"path": "/etc/passwd"},
        {"path": "x", "upload": "y"},
        {"priority": 1e9},
        {},
    ):
        answer = http.post("/v1/jobs", json=values)
        assert name(answer) in ("bad-request", "path-refused"), values
    for query in ("start=-1", "start=x", "count=0", "bogus=1", "timeout=1e9", "start=99999999999999999999"):
        assert name(http.get(f"/v1/jobs/{job}/frames?{query}")) == "bad-request", query
    for body in (b"[]", b"3", b"{", b"\xff", b'{"path": NaN'):
        answer = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert name(answer) == "bad-request"
    assert name(http.put("/v1/uploads/" + "0" * 32, content=b"x")) == "no-such-upload"
    assert name(http.put("/v1/uploads/x?offset=-3", content=b"x")) == "bad-request"


def test_tricks_with_paths(world: tuple[Daemon, httpx.Client, str]) -> None:
    daemon, http, job = world
    secret = daemon.base / "results" / "secret.txt"
    secret.write_text("secret")
    for trick in (
        "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt",
        "%2fetc%2fpasswd", "//etc/passwd", ".", "..", "summary.json%00", "summary.json/", "./summary.json%2f..",
    ):  # fmt: skip
        for place in (f"/v1/jobs/{job}/files/", "/static/", f"/v1/jobs/{job}/view/found/"):
            answer = _raw(daemon, place + trick)
            assert (
                b" 200 " not in answer.split(b"\r\n")[0] and b"secret" not in answer.split(b"\r\n\r\n", 1)[1][:6]
            ), trick
            assert b"internal" not in answer, trick
    assert name(http.get("/v1/jobs/..%2f..%2fx")) in ("no-such-job", "no-such-page")


def _raw(daemon: Daemon, target: str, more: bytes = b"") -> bytes:
    """A request as it is written, which no client would tidy up."""
    port = int(address(daemon).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 30) as link:
        head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        link.sendall(head.encode() + more)
        found = b""
        while piece := link.recv(65536):
            found += piece
        return found


def test_no_protocol_at_all(world: tuple[Daemon, httpx.Client, str]) -> None:
    daemon, http, _ = world
    port = int(address(daemon).rpartition(":")[2])
    for noise in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff" * 100_000):
        with socket.create_connection(("127.0.0.1", port), 30) as link:
            try:
                link.sendall(noise)
                link.shutdown(socket.SHUT_WR)
                answer = link.recv(65536)
            except ConnectionError:
                continue
            assert answer == b"" or b" 4" in answer.split(b"\r\n")[0], noise[:20]
    assert http.get("/v1/hello").status_code == 200


def test_results_are_never_a_page(world: tuple[Daemon, httpx.Client, str]) -> None:
    """A file that somebody gave the name of a page is bytes to a browser."""
    _, http, job = world
    folder = Path(http.get(f"/v1/jobs/{job}/results").json()["folder"])
    for odd in ("page.html", "picture.svg", "code.js", "feed.xml"):
        (folder / odd).write_text("<script>alert(1)</script>")
        answer = http.get(f"/v1/jobs/{job}/files/{odd}")
        assert answer.headers["content-type"] == "application/octet-stream", odd
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


class _Stuck:
    """A client of the guard that takes, or sends, nothing."""

    def __init__(self, takes: bool, sends: bool) -> None:
        self.takes, self.sends, self.sent = takes, sends, []  # type: ignore[var-annotated]

    async def receive(self) -> dict[str, Any]:
        if not self.sends:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        if not self.takes and message["type"] == "http.response.body":
            await asyncio.sleep(3600)
        self.sent.append(message)


def _scope() -> dict[str, Any]:
    headers = [(b"host", b"localhost")]
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "query_string": b"",
    }


def test_who_takes_nothing_is_cut_off() -> None:
    cut: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    stuck = _Stuck(takes=False, sends=True)
    asyncio.run(Guard(app, Rules(stall=0.05), cut.append)(_scope(), stuck.receive, stuck.send))
    assert cut == [("127.0.0.1", 5)]


def test_who_sends_nothing_is_refused_by_name() -> None:
    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    stuck = _Stuck(takes=True, sends=False)
    asyncio.run(Guard(app, Rules(stall=0.05))(_scope(), stuck.receive, stuck.send))
    assert stuck.sent[0]["status"] == 408 and b"too-slow" in stuck.sent[1]["body"]


def test_no_more_at_a_time_than_the_setting() -> None:
    async def crowd() -> list[int]:
        gate = asyncio.Event()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await gate.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        guard, clients = Guard(app, Rules(most=3)), [_Stuck(True, True) for _ in range(5)]
        tasks = [asyncio.create_task(guard(_scope(), one.receive, one.send)) for one in clients]
        while sum(bool(one.sent) for one in clients) < 2:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return [one.sent[0]["status"] for one in clients]

    assert asyncio.run(crowd()) == [200, 200, 200, 429, 429]


class _Nobody:
    def listen(self, heard: Any) -> None: ...
    def ask(self, client: bytes, operation: Any, blob: bytes = b"") -> Any: ...
    def part(self, client: bytes) -> None: ...


def test_what_is_refused_at_the_start(tmp_path: Path) -> None:
    token, short = tmp_path / "token", tmp_path / "short"
    token.write_text("x" * 32)
    short.write_text("abc")
    short.chmod(0o600)
    for settings, said in (
        (HttpSettings("0.0.0.0:0"), "demands a token"),
        (HttpSettings("nonsense"), "write HOST:PORT"),
        (HttpSettings("192.0.2.1:0", token=str(tmp_path / "none")), "openssl rand"),
        (HttpSettings("127.0.0.1:0", token=str(token)), "chmod 600"),
        (HttpSettings("127.0.0.1:0", token=str(short)), "16 characters"),
    ):
        with pytest.raises(ConfigError, match=said):
            Gateway(settings, ApiSettings(), _Nobody(), CollectorRegistry(), tmp_path, {})
