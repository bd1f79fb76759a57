"""Metrics: what a real daemon serves while it works and its stages are killed, and what is built on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.request
from concurrent.futures import Future
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.api import messages as ms
from daemon.api.counting import Counting, Readers
from daemon.api.messages import ApiError
from daemon.api.server import Later
from daemon.jobs.images import ImageFailed
from daemon.settings.sources import ConfigError
from daemon.telemetry.logs import FILE
from daemon.telemetry.metrics import Endpoint, Metrics, is_loopback, split
from daemon.telemetry.story import read
from stages.owner.jobs import StageEvent
from stages.settings import PipelineSettings
from tests.daemon.daemons import PATIENCE, Daemon, ended, until
from tests.daemon.test_serve import square
from tests.paths import ROOT
from tests.stages.harness import write_squares

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
DOCS = ROOT / "docs"


def scrape(address: str) -> Samples:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"poseward_{name}", tuple(sorted(labels.items()))))


def address_of(daemon: Daemon) -> str:
    lines = [line for line in read(daemon.base / "state" / "logs" / FILE) if line["event"] == "metrics"]
    return str(lines[-1]["address"])


def test_a_daemon_at_work_whose_stages_are_killed(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    write_squares(tmp_path / "bad.mp4", 5).write_bytes(b"no video at all")
    faults = 'stages.faults=["detect:raise@7","mesh:slow=0.02%1/1"]'
    with Daemon(tmp_path, faults, "metrics.address=127.0.0.1:0") as daemon, daemon.client() as client:
        address = address_of(daemon)
        job = client.submit(clip)["id"]
        until(lambda: client.status(job).get("progress", {}).get("committed", 0) > 10, "ten frames")
        os.kill(client.health()["processes"]["mesh"]["pid"], signal.SIGKILL)
        until(lambda: value(scrape(address), "jobs", state="running") == 1, "a running job in the figures")
        client.submit(tmp_path / "bad.mp4")
        assert client.wait(job, PATIENCE)["state"] == "done"
        again = client.submit(clip, key="again")["id"]
        assert client.image(square()) is not None
        assert ended(client, [again])[0]["same_as"] == job
        until(lambda: value(scrape(address), "frames_total", stage="track") == 61, "61 frames, each once")
        found = until(lambda: (now := scrape(address)) and value(now, "jobs", state="done") == 2 and now)

        for stage in ("detect", "mesh", "track"):
            assert value(found, "frames_total", stage=stage) >= 60, stage  # type: ignore[operator]
        assert value(found, "stage_busy_seconds_total", stage="mesh") >= 1.2  # type: ignore[operator]
        assert value(found, "stage_deaths_total", stage="mesh", cause="signal") == 1
        assert value(found, "stage_deaths_total", stage="detect", cause="exception") == 1
        assert value(found, "stage_deaths_total", stage="track", cause="host_oom") == 0
        assert value(found, "jobs", state="done") == 2
        assert value(found, "jobs_ended_total", state="done", error="") == 2
        assert value(found, "jobs_ended_total", state="failed", error="unreadable-video") == 1, found
        assert value(found, "jobs_reused_total") == 1
        assert value(found, "job_duration_seconds_count", state="done") == 1
        assert value(found, "job_frames_sum") == 60
        assert value(found, "images_total", result="ok") == 1
        assert value(found, "image_duration_seconds_count") == 1
        assert value(found, "api_requests_total", op="submit", result="ok") == 3
        assert value(found, "api_clients") == 1
        assert value(found, "process_resident_memory_bytes", process="track", stage="track") > 1 << 20  # type: ignore[operator]
        assert value(found, "process_batch_frames", process="mesh", stage="mesh") >= 1  # type: ignore[operator]
        assert value(found, "disk_free_bytes", folder="state") > 0  # type: ignore[operator]
        assert value(found, "host_memory_available_bytes") > 0  # type: ignore[operator]
        infos = [dict(labels) for name, labels in found if name == "poseward_process_info"]
        assert {info["process"] for info in infos} == {"decode", "detect", "mesh", "track"}
        assert all(len(info["fingerprint"]) == 12 for info in infos), infos
        assert client.health()["ready"]
        if not Path("/proc/net/tcp").exists():
            return
        with pytest.raises(ConfigError, match="another program has this port"):
            Endpoint(address, Metrics(PipelineSettings(), {}).registry)


def test_an_address_in_use_stops_the_start_by_name(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        daemon = Daemon(tmp_path, f"metrics.address=127.0.0.1:{holder.getsockname()[1]}").start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE) == 2
        assert "metrics.address" in daemon.story() and "Traceback" not in daemon.story()


@pytest.mark.parametrize("text", ["9464", "localhost", "http://x:1", "a:99999", "::1:9464", ":9464", "a b:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.address"):
        split(text)


def test_addresses() -> None:
    assert split("[::1]:9464") == ("::1", 9464)
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.0.2.1") and not is_loopback("gpu-box")


def test_a_public_address_is_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = Endpoint("0.0.0.0:0", Metrics(PipelineSettings(), {}).registry)
    try:
        assert "whoever reaches this address" in "".join(capsys.readouterr())
        port = endpoint.address.rpartition(":")[2]
        assert value(scrape(f"127.0.0.1:{port}"), "start_time_seconds")
    finally:
        endpoint.close()
        endpoint.close()


def test_a_scraper_that_says_nothing_holds_up_nobody() -> None:
    endpoint = Endpoint("127.0.0.1:0", Metrics(PipelineSettings(), {}).registry)
    try:
        host, _, port = endpoint.address.rpartition(":")
        with socket.create_connection((host, int(port))):
            assert scrape(endpoint.address)
    finally:
        endpoint.close()


def test_a_folder_that_is_gone_is_no_figure(tmp_path: Path) -> None:
    metrics = Metrics(PipelineSettings(), {"results": tmp_path / "not" / "there"})
    assert metrics.registry.get_sample_value("poseward_disk_free_bytes", {"folder": "results"}) > 0  # type: ignore[operator]


def test_images_are_counted_by_their_end() -> None:
    metrics = Metrics(PipelineSettings(), {})
    futures: list[Future[Path]] = [Future() for _ in range(3)]
    for future in futures:
        metrics.watch_image(future)
    futures[0].set_result(Path())
    futures[1].set_exception(ImageFailed("busy", ""))
    futures[2].cancel()
    for result in ("ok", "busy", "cancelled"):
        assert metrics.registry.get_sample_value("poseward_images_total", {"result": result}) == 1


def test_requests_are_counted_once_each_and_readers_remembered() -> None:
    counted: list[tuple[str, str]] = []

    class Handler:
        def handle(self, client: bytes, operation: ms.Operation, blob: bytes, own: bool = False) -> object:
            match operation:
                case ms.Hello():
                    return {}, None
                case ms.Wait():
                    return Later(lambda last: ({}, None) if last else None, 1.0)
                case ms.Frames():
                    return Later(lambda last: None, 1.0)
                case ms.Results():
                    raise ApiError("results-gone", "")
            raise ZeroDivisionError

    now = 100.0
    readers = Readers(lambda: now)
    counting = Counting(Handler(), readers, lambda op, result: counted.append((op, result)))  # type: ignore[arg-type]
    counting.handle(b"", ms.Hello(), b"")
    for asked in (ms.Wait("j"), ms.Frames("k")):
        later = counting.handle(b"", asked, b"")
        assert isinstance(later, Later)
        later.attempt(False)
        later.attempt(True)
    with pytest.raises(ApiError):
        counting.handle(b"", ms.Results("j"), b"")
    with pytest.raises(ZeroDivisionError):
        counting.handle(b"", ms.Health(), b"")
    assert counted == [
        ("hello", "ok"), ("wait", "ok"), ("frames", "deadline-exceeded"), ("results", "results-gone"),
        ("health", "internal"),
    ]  # fmt: skip
    assert readers.since(10) == {"j", "k"}
    now += 20
    assert readers.since(10) == set()


# -- what is built on these names ----------------------------------------------------------------------------

USED = re.compile(r"\bposeward_[a-z0-9_]+")


def names() -> set[str]:
    metrics = Metrics(PipelineSettings(), {"state": Path("/")})
    metrics.on_event(StageEvent("", "mesh", "skipping", "x"))
    found = set()
    for family in metrics.registry.collect():
        found.add(family.name)
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
        found.update(family.name + end for end in ends.get(family.type, ("",)))
    return found


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yml", "operations.md"])
def test_every_metric_in_the_docs_exists(file: str) -> None:
    text = (DOCS / file).read_text()
    used = set(USED.findall(text))
    assert len(used) > 10
    assert used <= names(), used - names()


def test_every_metric_is_in_the_runbook() -> None:
    text = (DOCS / "operations.md").read_text()
    families = {family.name for family in Metrics(PipelineSettings(), {"state": Path("/")}).registry.collect()}
    assert not {name for name in families if name not in text}


def test_the_dashboard_is_whole() -> None:
    board = json.loads((DOCS / "grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["targets"] and all(target["expr"] for target in panel["targets"]) for panel in panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
