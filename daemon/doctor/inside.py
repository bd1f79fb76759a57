"""Runs in a stage's own interpreter, started by `supervisor.launch`, with a JSON map, and says what that has.

Everything it says is a JSON line on the standard output it was started with; what libraries print goes to
standard error. A line ``{"step": …}`` comes before anything that may hang or kill the process, so that whoever
reads knows where it was. Standard library only, until the point where a package is itself what is asked about.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Say = Callable[..., None]

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4")
ENCODERS = ("libx264", "mpeg4")


def main() -> None:
    """The request is ``sys.argv[1]``: ``{stage, backend, options, modules, frameworks, cuda, codecs}``."""
    request = json.loads(sys.argv[1])
    output = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        output.write(json.dumps(line) + "\n")

    say(prefix=sys.prefix, base=sys.base_prefix)
    imported = [name for name in request["modules"] if _import(name, say)]
    say(step="asking the backend what it needs")
    try:
        say(problems=_problems(request["backend"], request["stage"], request["options"]))
    except ImportError:
        if len(imported) == len(request["modules"]):
            raise  # else what is missing has been said
    say(versions=_versions([*request["modules"], *request["packages"]]))
    if request["cuda"]:
        say(step="loading libcuda.so.1")
        say(libcuda=_library("libcuda.so.1"))
    if "torch" in request["frameworks"] and importlib.util.find_spec("torch") and _import("torch", say):
        say(step="asking torch for its GPUs")
        say(torch=_torch())
        if "torchvision" in request["frameworks"] and importlib.util.find_spec("torchvision"):
            _import("torchvision", say)
    if request["codecs"] and importlib.util.find_spec("av") and _import("av", say):
        say(codecs=_codecs(say))
    say(done=True)


def _import(name: str, say: Say) -> bool:
    say(step=f"importing {name}")
    try:
        importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001  (a package may do anything at import, sys.exit among it)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        say(failed=name, missing=missing, error=f"{type(error).__name__}: {error}")
        return False
    return True


def _problems(backend: str, stage: str, options: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the backend itself finds lacking for a stage, where it can say so: packages, weights, device."""
    from stages.protocols import ConfigurationError, find_backend

    try:
        found = find_backend(backend).problems(stage, options)
    except ConfigurationError as error:
        way = "correct stages.backend and [stages.options]; `poseward config show` says where they are set"
        return [{"what": str(error), "way": way, "about": "option"}]
    return [{"what": problem.what, "way": problem.way, "about": problem.about} for problem in found]


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """The installed distributions that the modules' packages belong to."""
    owners = importlib.metadata.packages_distributions()
    found = {}
    for module in modules:
        for name in owners.get(module.split(".")[0], ()):
            found[name] = importlib.metadata.version(name)
    return found


def _library(name: str) -> str:
    """Empty, or why the dynamic linker does not find a library."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return ""


def _torch() -> dict[str, Any]:
    """Version, CUDA version it was built for, GPUs it sees, and for which kinds of GPU it has code. Makes no
    context on a GPU, which would take memory there."""
    import warnings

    torch = importlib.import_module("torch")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "available": available,
        "count": torch.cuda.device_count() if available else 0,
        "architectures": torch.cuda.get_arch_list() if available else [],
        "warning": " ".join(str(warning.message) for warning in said)[:400],
    }


def _codecs(say: Say) -> dict[str, list[str]]:
    """Codecs that cannot be opened, and those that were really used to write and read back a frame."""
    av = importlib.import_module("av")
    lacking = []
    for name in DECODERS:
        say(step=f"opening the decoder {name}")
        try:
            av.CodecContext.create(name, "r")
        except Exception:  # noqa: BLE001  (PyAV raises several kinds, by version)
            lacking.append(name)
    works = []
    for name in ENCODERS:
        say(step=f"encoding with {name}")
        if _round_trip(av, name):
            works.append(name)
    return {"lacking": lacking, "encoders": works}


def _round_trip(av: Any, encoder: str) -> bool:
    import io

    file = io.BytesIO()
    try:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream(encoder, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(stream.encode(None))
        file.seek(0)
        with av.open(file) as container:
            return sum(1 for _ in container.decode(video=0)) == 3
    except Exception:  # noqa: BLE001
        return False


if __name__ == "__main__":
    main()
