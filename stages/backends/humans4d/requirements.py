"""Says in seconds what is missing for a stage, before anything heavy is imported or loaded.

Packages are looked for without being imported; weights by their size; the device through the driver's library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

from stages.backends.humans4d.options import Options
from stages.backends.humans4d.weights import FETCH_WAY, SMPL_WAY, WeightFile, files_of
from stages.protocols import ConfigurationError, Problem

HMR2_COMMIT = "6ec79656a23c33237c724742ca2a0ec00b398b53"
PHALP_COMMIT = "96f7e6c09fb858ec3f597d59246c151ab4394bc3"
DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"

TORCH = (2, 1)
"""The first that maps checkpoints into memory and takes their tensors as they are."""
NO_PACKAGE = "no package "
_EXTRA = "pip install 'poseward[humans4d]'"


def _git(name: str, repository: str, commit: str) -> str:
    source = f"git+https://github.com/{repository}@{commit}"
    return f"pip install --no-deps '{source}' ({name} is not on the package index)"


SOURCES: dict[str, str] = {
    "hmr2": _git("hmr2", "shubham-goel/4D-Humans", HMR2_COMMIT),
    "phalp": _git("this phalp", "brjathu/PHALP", PHALP_COMMIT),
    "detectron2": _git("detectron2", "facebookresearch/detectron2", DETECTRON2_COMMIT),
    "torch": "see https://pytorch.org for the build that fits the driver, then " + _EXTRA,
    "torchvision": "see https://pytorch.org for the build that fits torch, then " + _EXTRA,
    "pkg_resources": "pip install 'setuptools<81' (detectron2 still imports pkg_resources)",
}

PACKAGES: dict[str, tuple[str, ...]] = {
    "detect": ("torch", "torchvision", "detectron2", "PIL", "pycocotools", "fvcore", "iopath", "omegaconf", "hydra",
               "cloudpickle", "yacs", "termcolor", "tabulate", "matplotlib", "tqdm", "pkg_resources"),
    "mesh": ("torch", "torchvision", "hmr2", "phalp", "pytorch_lightning", "yacs", "einops", "timm", "smplx", "scipy",
             "trimesh"),
    "track": ("torch", "phalp", "scipy", "einops", "smplx", "omegaconf", "rich", "dill"),
}  # fmt: skip


def check(stage: str, options: Options) -> None:
    """Return when ``stage`` lacks nothing.

    Raises:
        ConfigurationError: it does; one line, which is shown in many places, with what matters most of it.
    """
    found = problems(stage, options)
    if found:
        raise ConfigurationError(f"backend humans4d, {stage}: {_told(stage, found)}")


def _told(stage: str, found: Sequence[Problem]) -> str:
    """A stage without its environment lacks twenty things: a line for each is the doctor's affair."""
    packages = [problem for problem in found if problem.what.startswith(NO_PACKAGE)]
    fetched = [problem for problem in found if problem.about == "file" and FETCH_WAY in problem.way]
    others = [problem for problem in found if problem not in packages and problem not in fetched]
    parts = []
    if len(packages) == 1:
        parts.append(str(packages[0]))
    elif packages:
        names = [problem.what.removeprefix(NO_PACKAGE).split(",")[0] for problem in packages]
        parts.append(
            f"{_interpreter()} has no {_some(names)}: set stages.{stage}.python to the python of the environment that "
            "has them, or install them as docs/humans4d.md says"
        )
    parts += [str(problem) for problem in others if problem.about != "file"]
    own = [problem for problem in others if problem.about == "file"]
    if fetched:
        parts.append(f"{_some([problem.what for problem in fetched], 1)}; {FETCH_WAY}")
        parts += [f"{problem.what}, which only you can supply: the same command says how" for problem in own]
    else:
        parts += [str(problem) for problem in own]
    if len(found) > 1:
        parts.append("`poseward doctor` tells all of it one by one")
    return "; ".join(parts)


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def problems(stage: str, options: Options) -> list[Problem]:
    """Everything that ``stage`` lacks: packages, weights, device. Imports torch only if it is there and the device is
    CUDA."""
    found = [p for name in PACKAGES[stage] if (p := _package(name)) is not None]
    if "phalp" in PACKAGES[stage] and not _lacks(found, "phalp"):
        found += _phalp()
    if not _lacks(found, "torch"):
        found += _torch_version() or _device(options)
    found += _precision(stage, options)
    found += _compiling(stage, options)
    found += _renderer(stage, options)
    found += [p for f in files_of(stage, options.detector) if (p := file_problem(f, options.path(f.option)))]
    return found


def _lacks(found: Sequence[Problem], package: str) -> bool:
    return any(problem.what.startswith(f"{NO_PACKAGE}{package},") for problem in found)


def _precision(stage: str, options: Options) -> list[Problem]:
    """The tracker has no backbone, so that a profile for the GPU is no error where it alone stays on the CPU."""
    if stage == "track" or options.device != "cpu" or options.dtype != "fp16":
        return []
    profile = ' (profile = "8gb" sets it)' if options.profile == "8gb" else ""
    return [
        Problem(
            f"dtype fp16{profile} is for CUDA devices, and {stage} runs on the CPU",
            f'set stages.{stage}.device = "cuda", or dtype = "bf16" or "fp32"',
            "option",
        )
    ]


def _compiling(stage: str, options: Options) -> list[Problem]:
    """torch.compile writes sources that include Python.h: C and Triton for CUDA, C++ for the CPU."""
    if not options.compile or stage == "track":
        return []
    cuda = options.device != "cpu"
    variable, names = ("CC", ("gcc", "clang")) if cuda else ("CXX", ("g++", "clang++"))
    lacks = []
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        lacks.append(("a compiler", "sudo apt install g++"))
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacks.append((f"{sysconfig.get_path('include')}/Python.h", "sudo apt install python3-dev"))
    if cuda and importlib.util.find_spec("triton") is None:
        lacks.append(("the package triton", "pip install triton"))
    return [
        Problem(f"compile = true needs {what}, which is not there", f"{way}, or set compile = false", "option")
        for what, way in lacks
    ]


def _renderer(stage: str, options: Options) -> list[Problem]:
    if stage != "mesh" or options.depth_test != "neural_renderer":
        return []
    if options.device == "cpu":
        why = "which is for CUDA devices, and mesh runs on the CPU"
    elif importlib.util.find_spec("neural_renderer") is None:
        why = f"which {_interpreter()} does not find"
    else:
        return []
    return [Problem(f'depth_test = "neural_renderer", {why}', 'set depth_test = "builtin"', "option")]


def _torch_version() -> list[Problem]:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # built from its sources, perhaps
        return []
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) >= TORCH:
        return []
    wanted = ".".join(map(str, TORCH))
    return [Problem(f"torch {version} is too old: {wanted} or newer is needed", SOURCES["torch"], "package")]


def _package(name: str) -> Problem | None:
    try:
        present = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        present = False
    if present:
        return None
    way = SOURCES.get(name, _EXTRA)
    return Problem(f"{NO_PACKAGE}{name}, which {_interpreter()} does not find", way)


def _interpreter() -> str:
    return sys.executable or "this interpreter"


def _phalp() -> list[Problem]:
    """The release on the package index carries the same name and version as the repository's head, so the only
    way to tell them apart is to look for a module that came later."""
    spec = importlib.util.find_spec("phalp")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if any((Path(place) / "models" / "predictor" / "pose_transformer_v2.py").is_file() for place in places):
        return []
    return [
        Problem(
            f"the phalp in {places[0] if places else 'the path'} is the 2022 release from the package index, "
            "an older, incompatible program",
            "pip uninstall phalp, then " + SOURCES["phalp"],
        )
    ]


def _device(options: Options) -> list[Problem]:
    if options.device == "cpu":
        return []
    way = 'install a CUDA build of torch and check `nvidia-smi`, or set device = "cpu" for this stage'
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001  (a broken build may raise anything)
        return [
            Problem(
                f"torch cannot be imported ({type(error).__name__}: {error})", "reinstall it: " + SOURCES["torch"]
            )
        ]
    if not torch.cuda.is_available():
        build = getattr(torch.version, "cuda", None)
        why = (
            "this torch is built without CUDA" if build is None else f"torch (CUDA {build}) sees no GPU or driver"
        )
        return [Problem(f"device = {options.device!r}, but {why}", way, "device")]
    index = int(options.device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return [Problem(f"device = {options.device!r}, but there are {count} GPUs", way, "device")]
    # Of the GPU that is meant, and without a tensor on it: nothing may be allocated before the allocator's settings.
    capability = torch.cuda.get_device_capability(index)
    architectures = torch.cuda.get_arch_list()
    if not _has_code(architectures, capability):
        what = f"this torch has no code for the GPU (sm_{capability[0]}{capability[1]}), only for "
        return [
            Problem(
                f"device = {options.device!r}, but {what}{', '.join(architectures)}",
                "install a torch that has it: a newer one for a newer GPU, an older one for an older",
                "device",
            )
        ]
    if options.dtype == "bf16" and capability < (8, 0):
        return [Problem("dtype = 'bf16', which this GPU lacks", 'set dtype = "fp16"', "option")]
    return []


def _has_code(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """CUDA's rule: machine code (sm_XY) runs on its own major version from its minor version on, intermediate code
    (compute_XY) on everything from its version on."""
    versions = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in architectures]
    for found in filter(None, versions):
        major, minor = int(found[2]), int(found[3])
        if (major, minor) <= capability and (found[1] == "compute" or major == capability[0]):
            return True
    return not any(versions)


def file_problem(file: WeightFile, path: Path) -> Problem | None:
    """What is wrong with one weight file: missing, cut off, or not of the kind its name says. None if nothing."""
    way = (
        SMPL_WAY
        if file.url is None
        else f"{FETCH_WAY} (from {file.url}); or name it with the option {file.option}"
    )
    if not path.is_file():
        partial = path.with_name(path.name + ".part")
        begun = f" ({partial.stat().st_size >> 20} MB of it were downloaded before)" if partial.is_file() else ""
        return Problem(f"no file {path}{begun}", way, "file")
    # A file that the user names may be another one than upstream's; the size is known for upstream's only.
    least = file.at_least if path == Path.home() / file.default else 1
    try:
        wrong = content_problem(path, path.suffix, least)
    except OSError as error:
        return Problem(f"{path} cannot be read: {error.strerror}", "give this user the right to read it", "file")
    return Problem(f"{path} {wrong}", f"remove it; {way}", "file") if wrong else None


def content_problem(path: Path, suffix: str, least: int) -> str:
    """What is wrong with the content of a file that is to end in ``suffix``; empty if nothing. Reads a few kilobytes.

    Zip archives (torch, npz) have their directory at the end, pickles a stop mark: so a missing end shows.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size < least:
        return f"has {size} bytes, at least {least} are expected: a download broke off"
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-1, 2)
        last = file.read(1)
    cut = start[:2] == b"PK" and not zipfile.is_zipfile(path)
    cut = cut or (suffix == ".pkl" and start[:1] == pickle.PROTO and last != pickle.STOP)
    return "is damaged: its end is missing" if cut else ""
