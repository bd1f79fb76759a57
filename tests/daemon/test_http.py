"""The gateway and real daemons: every operation over HTTP answers what ZeroMQ answers."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from daemon.api.messages import OPERATIONS
from daemon.http.openapi import describe
from daemon.http.routes import PLAIN
from tests.daemon.daemons import PATIENCE, Daemon, until
from tests.daemon.gateways import asker, finished, with_http
from tests.stages.harness import write_squares

SLOW = 'stages.faults=["mesh:slow=0.03%1/1"]'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, httpx.Client, str]]:
    """A daemon, who asks it, and a job that is done."""
    base = tmp_path_factory.mktemp("http")
    clip = write_squares(base / "clip.mp4", 40)
    with with_http(base) as daemon, asker(daemon) as http:
        made = http.post("/v1/jobs", json={"path": str(clip), "key": "first"})
        assert made.status_code == 200 and made.json()["new"], made.text
        job = made.json()["job"]["id"]
        assert finished(http, job)["state"] == "done"
        yield daemon, http, job


def picture() -> bytes:
    image = np.zeros((120, 160, 3), np.uint8)
    image[20:60, 20:60] = 255
    return bytes(cv2.imencode(".png", image)[1])


def test_jobs_are_as_the_api_has_them(world: tuple[Daemon, httpx.Client, str]) -> None:
    daemon, http, job = world
    with daemon.client() as client:
        expected = client.status(job)
        assert http.get(f"/v1/jobs/{job}").json()["job"] == json.loads(json.dumps(expected))
        assert http.get("/v1/jobs", params={"states": "done,failed", "limit": 5}).json()["jobs"][-1]["id"] == job
        assert http.get("/v1/hello").json()["daemon"] == client.hello()["daemon"]
    assert http.get("/v1/jobs", params={"text": "nothing like it"}).json()["jobs"] == []
    assert http.post(f"/v1/jobs/{job}/cancel").json()["job"]["state"] == "done"
    refused = http.post(f"/v1/jobs/{job}/retry")
    assert refused.status_code == 409 and refused.json()["error"]["name"] == "wrong-state"
    missing = http.get("/v1/jobs/nobody")
    assert missing.status_code == 404 and missing.json()["error"]["name"] == "no-such-job"


def test_frames_as_json_and_as_streams(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, job = world
    whole = Path(http.get(f"/v1/jobs/{job}/results").json()["folder"], "frames.msgpack").read_bytes()
    assert http.get(f"/v1/jobs/{job}/frames.msgpack").content == whole
    lines = http.get(f"/v1/jobs/{job}/frames.ndjson", params={"start": 10}).text.splitlines()
    header, records = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
    assert header["width"] == 160 and [record["frame"] for record in records] == list(range(10, 40))
    page = http.get(f"/v1/jobs/{job}/frames", params={"start": 12, "count": 1}).json()
    assert page["records"] == [records[2]] and page["next"] == 13 and not page["end"]
    assert "vertices" not in page["records"][0]["tracks"][0]
    page = http.get(f"/v1/jobs/{job}/frames", params={"count": 1, "vertices": "true"}).json()
    assert np.shape(page["records"][0]["tracks"][0]["vertices"]) == (4, 3)


def test_files_with_ranges(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, job = world
    place = f"/v1/jobs/{job}/files/frames.msgpack"
    whole = http.get(place).content
    for asked, start, end in (
        ("bytes=0-9", 0, 10), ("bytes=100-", 100, len(whole)), ("bytes=-7", len(whole) - 7, len(whole)),
        (f"bytes=5-{10**15}", 5, len(whole)),
    ):  # fmt: skip
        part = http.get(place, headers={"Range": asked})
        assert part.status_code == 206 and part.content == whole[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
    beyond = http.get(place, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416 and beyond.json()["error"]["name"] == "range-refused"
    for odd in ("bytes=1-2,5-6", "frames=1-2", "bytes=-", "bytes=9-2x"):
        assert http.get(place, headers={"Range": odd}).content == whole
    head = http.head(place)
    assert int(head.headers["content-length"]) == len(whole) and head.headers["accept-ranges"] == "bytes"
    video = http.get(f"/v1/jobs/{job}/video", headers={"Range": "bytes=4-7"})
    assert video.content == b"ftyp" and video.headers["content-type"] == "video/mp4"


def test_an_upload_is_gone_on_with(world: tuple[Daemon, httpx.Client, str], tmp_path: Path) -> None:
    _, http, _ = world
    data = write_squares(tmp_path / "other.mp4", 25).read_bytes()
    about = {"name": "other.mp4", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    upload = http.post("/v1/uploads", json=about).json()
    place = f"/v1/uploads/{upload['upload']}"
    half = len(data) // 2
    assert http.put(place, params={"offset": 0}, content=data[:half]).json()["offset"] == half
    wrong = http.put(place, params={"offset": 3}, content=data[3:])
    assert wrong.json()["error"]["name"] == "wrong-offset" and wrong.json()["error"]["offset"] == half
    assert http.post("/v1/uploads", json=about).json()["offset"] == half
    early = http.post("/v1/jobs", json={"upload": upload["upload"]})
    assert early.status_code == 409 and early.json()["error"]["name"] == "not-ready"
    assert http.put(place, params={"offset": half}, content=data[half:]).json()["complete"]
    job = http.post("/v1/jobs", json={"upload": upload["upload"]}).json()["job"]
    assert job["name"] == "other.mp4" and finished(http, job["id"])["frames"] == 25


def test_events_tell_how_a_job_goes(world: tuple[Daemon, httpx.Client, str], tmp_path: Path) -> None:
    daemon, http, _ = world
    clip = write_squares(daemon.base / "told.mp4", 30)
    seen: list[dict[str, object]] = []
    listening = threading.Event()

    def listen() -> None:
        with http.stream("GET", "/v1/events", params={"topics": "job."}) as stream:
            for line in stream.iter_lines():
                if line.startswith(": poseward"):
                    listening.set()
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
                    if seen[-1]["job"]["state"] == "done":  # type: ignore[index]
                        return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert listening.wait(PATIENCE)
    job = http.post("/v1/jobs", json={"path": str(clip)}).json()["job"]["id"]
    thread.join(PATIENCE)
    assert not thread.is_alive() and {event["topic"] for event in seen} == {f"job.{job}"}
    assert [event["seq"] for event in seen] == sorted(event["seq"] for event in seen)  # type: ignore[type-var]


def test_the_old_three(world: tuple[Daemon, httpx.Client, str]) -> None:
    """The contract of docs/http.md with those who come from the older service."""
    daemon, http, _ = world
    health = http.get("/health").json()
    assert health["status"] == "ok" and health["ready"] is True and health["device"] in ("cpu", "cuda")
    assert set(health["models"]) == {"decode", "detect", "mesh", "track"} and all(health["models"].values())
    clip = write_squares(daemon.base / "old.mp4", 20)
    made = http.post("/pose/video", json={"video_path": str(clip)})
    assert made.status_code == 202 and made.json()["job_id"]
    place = f"/pose/video/status/{made.json()['job_id']}"
    done = until(lambda: (found := http.get(place).json())["status"] == "done" and found, "the old status")
    assert (
        done["progress"] == 1.0
        and done["frames"] == 20
        and Path(done["results"]).is_dir()
        and done["error"] is None
    )
    assert http.get("/pose/video/status/nobody").status_code == 404
    for text in (
        base64.b64encode(picture()).decode(),
        "data:image/png;base64," + base64.b64encode(picture()).decode(),
    ):
        answer = http.post("/pose/hybrid", json={"image_base64": text, "frame_number": 7}).json()
        assert answer["frame_number"] == 7 and len(answer["people"]) == 1
        assert np.allclose(answer["people"][0]["box"], [20, 20, 60, 60], atol=2)
    for wrong in ({"image_base64": "%%%"}, {"image_base64": 3}, {}, {"image_base64": "QUJD", "frame_number": "x"}):
        assert http.post("/pose/hybrid", json=wrong).json()["error"]["name"] == "bad-request"
    assert http.post("/pose/video", json={"video_path": ""}).json()["error"]["name"] == "bad-request"


def test_an_image_and_figures(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, _ = world
    found = http.post("/v1/image", params={"vertices": "false"}, content=picture()).json()
    assert len(found["record"]["tracks"]) == 1 and "vertices" not in found["record"]["tracks"][0]
    assert http.post("/v1/image", content=b"no picture").status_code in (404, 422)
    assert "poseward_api_requests_total" in http.get("/metrics").text


def test_it_is_described(world: tuple[Daemon, httpx.Client, str]) -> None:
    _, http, _ = world
    told = http.get("/openapi.json").json()
    assert told == json.loads(json.dumps(describe()))
    assert {plain.op for plain in PLAIN} | {"chunk", "image", "file"} == set(OPERATIONS)
    submit = told["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"path", "upload", "priority", "exports"} <= set(submit["properties"])
    for path, methods in told["paths"].items():  # what is described is served
        for method in methods:
            place = path.replace("{", "x").replace("}", "x")
            with http.stream(method, place) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    name = answer.json()["error"]["name"]
                    assert name not in ("wrong-method", "internal"), (method, path)
                    assert name != "no-such-page" or "/view/" in path, (method, path)
    assert "/v1/jobs/{job}/frames.ndjson" in http.get("/docs").text


def test_a_stream_survives_the_daemon(tmp_path: Path) -> None:
    """What was begun goes on after kill -9, from the number that the reader has."""
    clip = write_squares(tmp_path / "clip.mp4", 90)
    with with_http(tmp_path, SLOW) as daemon:
        with asker(daemon) as http:
            job = http.post("/v1/jobs", json={"path": str(clip)}).json()["job"]["id"]
            lines: list[str] = []
            with (
                pytest.raises(httpx.TransportError),
                http.stream("GET", f"/v1/jobs/{job}/frames.ndjson") as stream,
            ):
                for line in stream.iter_lines():
                    lines.append(line)
                    if len(lines) == 20:
                        daemon.kill()
        daemon.start()
        with asker(daemon) as http:
            rest = http.get(f"/v1/jobs/{job}/frames.ndjson", params={"start": len(lines) - 1}).text.splitlines()
            frames = [json.loads(line)["frame"] for line in [*lines[1:], *rest[1:]]]
            assert frames == list(range(90)) and finished(http, job)["state"] == "done"
