"""Device, precision and loading: what the detector and the mesh regressor share. Imports torch when called."""

from __future__ import annotations

import gc
import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from stages.backends.humans4d.options import Options
from stages.protocols import ConfigurationError, Report

Tensor = Any
Module = Any
Result = TypeVar("Result")


_FULL = re.compile(r"CUDA( driver)? error: out of memory|CU(BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED")
_COMPILING, _EVERY = 1800.0, 1.0
"""Seconds: longest that compiling may take, and how often it is said to go on."""
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The older name and the newer: some versions of torch read only the one for some settings."""
_EXPANDABLE = "expandable_segments:True"
_SPLIT = "expandable_segments:False,max_split_size_mb:128,garbage_collection_threshold:0.8"


def allocator_settings(options: Options, kernel: str) -> str | None:
    """What torch's CUDA allocator is told, or None to leave it as it is.

    Args:
        kernel: the text of ``/proc/version``. Under WSL the virtual memory calls behind expandable segments fail on
            some drivers at the first allocation (pytorch #192330), with an error that looks like running out of
            memory; there, large blocks are not split instead, which keeps them whole for the next large request.
    """
    if options.allocator != "auto":
        return options.allocator or None
    return _SPLIT if "microsoft" in kernel.lower() else _EXPANDABLE


def set_allocator(options: Options, environment: MutableMapping[str, str], kernel: str) -> None:
    """Put the settings into the variables that torch reads at its first allocation; the user's own go before."""
    settings = allocator_settings(options, kernel)
    if settings and not any(environment.get(name) for name in ALLOCATOR_VARIABLES):
        environment.update(dict.fromkeys(ALLOCATOR_VARIABLES, settings))


def prepare(options: Options) -> Any:
    """Set threads, memory limits and the allocator of this process, before CUDA is touched; returns torch."""
    if options.device.startswith("cuda"):
        set_allocator(options, os.environ, _kernel())
    torch = import_module("torch")
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    if options.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # Autotuning picks kernels by timing: another run could pick others, and results would differ by a bit.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # By number: torch takes "cuda" without one for no device here. And nothing may make a context on GPU 0 of a
        # process that works on another.
        index = torch.device(options.device).index or 0
        torch.cuda.set_device(index)
        if options.memory_fraction:
            torch.cuda.set_per_process_memory_fraction(options.memory_fraction, index)
    return torch


def _kernel() -> str:
    try:
        return Path("/proc/version").read_text()
    except OSError:
        return ""


def precision(options: Options) -> Any:
    """The torch dtype of the backbones, or None for fp32."""
    torch = import_module("torch")
    return {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[options.dtype]


def autocast(options: Options) -> AbstractContextManager[Any]:
    """The context in which the backbones run."""
    dtype = precision(options)
    if dtype is None:
        return nullcontext()
    torch = import_module("torch")
    context: AbstractContextManager[Any] = torch.autocast(options.device.partition(":")[0], dtype=dtype)
    return context


def trim(options: Options) -> None:
    """Give the allocator's cached device memory back, where the options ask for it."""
    if options.trim and options.device.startswith("cuda"):
        import_module("torch").cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device's memory is full.

    Torch's allocator raises ``OutOfMemoryError``. What the driver, cuBLAS and cuDNN want beside it (a context, a
    kernel's code, a workspace) fails as a mere ``RuntimeError``, first of all on a small card.
    """
    return _is_named(error) or (isinstance(error, RuntimeError) and bool(_FULL.search(str(error))))


def named_out_of_memory(error: BaseException) -> BaseException:
    """``error`` as the ``OutOfMemoryError`` by which the stages and the supervisor know it."""
    if _is_named(error):
        return error
    named: BaseException = import_module("torch").cuda.OutOfMemoryError(str(error))
    return named


def _is_named(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


class Passes:
    """Passes over a fixed number of items, whatever there is to do.

    A kernel may sum in another order for another batch size: with one size only, what comes out for an item does not
    depend on which others happened to be waiting. If a pass does not fit into the device's memory it is tried
    once more with the allocator's caches given back; then the number is halved for as long as this process lives, and
    numbers may differ in the last bits.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size = size
        self._what = what

    def run(self, work: Callable[[int], Result]) -> Result:
        """What ``work`` of a number of items returns.

        Raises:
            Exception: what ``work`` raises; out of memory only where a single item does not fit.
        """
        again = True
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1 and not again:
                    raise named_out_of_memory(error) from None
                reason = str(error).partition("\n")[0]
            # Outside the handler, whose traceback keeps the failed pass's tensors alive.
            import_module("torch").cuda.empty_cache()
            if again:
                again = False
            else:
                self.size //= 2
            print(f"out of device memory, {self._what} in passes of {self.size} now: {reason}", file=sys.stderr)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build modules whose weights are loaded right after: random initialisation of ViT-H alone takes longer than
    reading it, and touches every page of memory that is never used."""
    init = import_module("torch").nn.init
    names = [name for name in dir(init) if name.endswith("_") and not name.startswith("_")]
    before = {name: getattr(init, name) for name in names}

    def nothing(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    for name in names:
        setattr(init, name, nothing)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(init, name, function)


def halved(model: Module) -> set[str]:
    """Names of the parameters of ``model`` that autocast would convert on every use: weights and biases of linear
    and convolution layers. Kept in half precision they give the very same results at half the memory."""
    torch = import_module("torch")
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, layers)
        for name, _ in module.named_parameters(recurse=False)
    }


def load_state(
    model: Module,
    state: dict[str, Any],
    options: Options,
    report: Report,
    *,
    source: Path,
    half: set[str],
    may_lack: Callable[[str], bool],
    keep: Callable[[Mapping[str, Tensor]], None] | None = None,
) -> None:
    """Put ``state`` (tensors or numpy arrays by name) into ``model`` on the device, one tensor at a time.

    A tensor is converted to its final dtype and place, and forgotten in ``state``, before the next is read: the peak is
    the larger of file and finished model, and one tensor. On the CPU in fp32 a memory-mapped tensor is used where it
    lies. ``keep`` is given what came of it all.

    Raises:
        ConfigurationError: a parameter that ``may_lack`` does not excuse is missing or has another shape.
    """
    torch = import_module("torch")
    device, dtype = torch.device(options.device), precision(options)
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    used = [name for name in wanted if name in state]
    missing = [name for name, _ in model.state_dict().items() if name not in state and not may_lack(name)]
    if missing:
        raise ConfigurationError(
            f"{source} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}, …): it is the file of "
            "another model or version"
        )
    placed: dict[str, Tensor] = {}
    total = sum(_count(state[name]) for name in used) or 1
    done = 0
    for name in used:
        value = state.pop(name)
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
        if tuple(tensor.shape) != tuple(wanted[name].shape):
            raise ConfigurationError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, the model wants {tuple(wanted[name].shape)}"
            )
        target = wanted[name].dtype
        if dtype is not None and name in half:
            target = dtype
        placed[name] = tensor.to(device, target)
        done += _count(value)
        report(f"loading {source.name}", done / total)
    if keep is not None:
        keep(placed)
    model.load_state_dict(placed, strict=False, assign=True)
    model.to(device)
    model.requires_grad_(False)
    model.eval()
    gc.collect()


def _count(value: Any) -> int:
    size = value.numel() if hasattr(value, "numel") else value.size
    return int(size)


UNREADABLE = (
    RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError,
)  # fmt: skip
"""What reading a pickle raises that is cut off, or none: a page of a server that says "not found", most often."""


def read_torch(path: Path, entry: str) -> Any:
    """What a torch checkpoint has under ``entry``, memory-mapped where its format allows.

    Checkpoints of 4D-Humans and PHALP carry configuration objects, so they cannot be read with ``weights_only``;
    like upstream this runs what the pickle says, so only files from a source you trust belong here.

    Raises:
        ConfigurationError: the file cannot be read, or has no such entry.
    """
    torch = import_module("torch")
    # As text, since the first versions that map take nothing else; and files of before torch 1.6 cannot be mapped.
    load = partial(torch.load, os.fspath(path), map_location="cpu", weights_only=False)
    try:
        try:
            content = load(mmap=True)
        except RuntimeError:
            content = load()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if not isinstance(content, Mapping) or entry not in content:
        raise ConfigurationError(f"{path} has no entry {entry!r}: it is another model's file")
    return content[entry]


def unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"cannot read {path} ({type(error).__name__}: {error}): remove it and fetch it again"
    )


def compiled(forward: Callable[[Tensor], Result], options: Options, report: Report) -> Callable[[Tensor], Result]:
    """``forward`` compiled with fixed shapes if the options ask for it.

    Compiling happens in the first pass of a shape, and takes minutes: ``report`` is told meanwhile that work goes on,
    for `_COMPILING` seconds at most.
    """
    if not options.compile:
        return forward
    fast: Callable[[Tensor], Result] = import_module("torch").compile(forward, dynamic=False)
    known: set[tuple[int, ...]] = set()

    def run(images: Tensor) -> Result:
        shape = tuple(images.shape)
        if shape in known:
            return fast(images)
        with _saying("compiling", report):
            result = fast(images)
        known.add(shape)
        return result

    return run


@contextmanager
def _saying(what: str, report: Report) -> Iterator[None]:
    over = threading.Event()
    ends = time.monotonic() + _COMPILING

    def say() -> None:
        while not over.wait(_EVERY) and time.monotonic() < ends:
            report(what)

    thread = threading.Thread(target=say, name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
