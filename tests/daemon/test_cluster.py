"""Several machines, played by raylets on this one: jobs, one long video, deaths of everybody, strangers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="needs ray: pip install 'poseward[cluster]'")

from daemon.client import Client
from tests.daemon.daemons import Daemon, ended, until
from tests.daemon.rays import Rays, cluster
from tests.stages.harness import Run, results_of, write_squares

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]
SLOW = 'stages.faults=["mesh:slow=0.05%1/1"]'
PATIENCE = 300.0


@pytest.fixture(scope="module")
def rays() -> Iterator[Rays]:
    with cluster(nodes=2) as found:
        yield found


def daemon_on(rays: Rays, folder: Path, *sets: str) -> Daemon:
    options = (f"cluster.address={rays.address}", "cluster.segment_frames=15", f'api.roots=["{folder}"]', *sets)
    return Daemon(folder / "d", *options)


def on_one_machine(clip: Path, folder: Path) -> bytes:
    with Run() as run:
        run.work(clip, folder)
        run.finish()
    return results_of(folder)


def stations(client: Client) -> list[dict[str, Any]]:
    found = client.health()["cluster"]["stations"]
    return [station for station in found if station["host"]]


def frames_back(client: Client) -> int:
    return max((job["frames"] for job in client.health()["cluster"]["jobs"].values()), default=0)


def station_processes() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "ray::Station" in " ".join(p.info["cmdline"] or ())]


def test_many_jobs_and_the_bytes_of_one_machine(rays: Rays, tmp_path: Path) -> None:
    clips = [write_squares(tmp_path / f"{frames}.mp4", frames) for frames in (1, 15, 16, 62)]
    expected = [on_one_machine(clip, tmp_path / f"one-{clip.stem}") for clip in clips]
    with daemon_on(rays, tmp_path) as daemon, daemon.client() as client:
        jobs = [client.submit(str(clip))["id"] for clip in clips]
        found = ended(client, jobs)
        assert [job["state"] for job in found] == ["done"] * 4, daemon.story()
        assert [results_of(Path(job["results"])) for job in found] == expected
        assert len({station["name"] for station in stations(client)}) == 2
        assert not list(daemon.results.glob("*.poseward-work"))


def test_one_long_video_while_everybody_dies(rays: Rays, tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 150)
    expected = on_one_machine(clip, tmp_path / "one")
    with daemon_on(rays, tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(str(clip))["id"]
        # A station, in the middle of a segment.
        until(lambda: frames_back(client) > 0, "the first segment", PATIENCE)
        station_processes()[0].kill()
        # A machine; another joins.
        until(lambda: frames_back(client) >= 45, "three segments", PATIENCE)
        rays.kill()
        rays.add()
        # The dispatching process.
        until(lambda: frames_back(client) >= 75, "five segments", PATIENCE)
        (dispatch,) = [p for p in daemon.below() if p.name() == "pw-dispatch"]
        dispatch.kill()
        until(lambda: len(stations(client)) >= 1 and frames_back(client) >= 75, "what was finished", PATIENCE)
        # The front itself.
        until(lambda: frames_back(client) >= 105, "seven segments", PATIENCE)
        daemon.kill()
        daemon.start()
        until(lambda: frames_back(client) >= 105 or client.status(job)["state"] == "done", "them again", PATIENCE)
        (found,) = ended(client, [job])
        assert found["state"] == "done", daemon.story()
        assert results_of(Path(found["results"])) == expected


@pytest.mark.long
def test_a_head_that_dies_is_waited_for(tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 60)
    expected = on_one_machine(clip, tmp_path / "one")
    with cluster(nodes=1) as rays, daemon_on(rays, tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(str(clip))["id"]
        until(lambda: frames_back(client) > 0, "the first segment", PATIENCE)
        rays.close()
        until(lambda: client.health()["cluster"]["state"] != "ready", "the end of the head, told", PATIENCE)
        assert any("cluster" in problem for problem in client.health()["problems"])
        assert client.status(job)["state"] == "running"
        rays.start()
        rays.add()
        (found,) = ended(client, [job])
        assert found["state"] == "done", daemon.story()
        assert results_of(Path(found["results"])) == expected
