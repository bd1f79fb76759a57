"""An imaginary second device for torch, called "aside": to find, without a GPU, code that mixes devices.

Its tensors hold CPU tensors and compute with them, so that results must be the CPU's to the bit; but they say that they
live elsewhere, and an operation on tensors of two devices is an error as it is with CUDA, as is reading one as an array
without bringing it back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "aside"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
_MAY_MIX = {"copy_", "_copy_from"}


class Aside(torch.Tensor):
    """A tensor of that device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Aside:
        made: Aside = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, dispatch_device=True,
        )  # type: ignore[attr-defined]  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Aside({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del cls, types
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = operation.overloadpacket.__name__
    if name == "device":
        return DEVICE
    if name == "_has_compatible_shallow_copy_type":
        return False
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours = [value for value in tensors if isinstance(value, Aside)]
    theirs = [value for value in tensors if not isinstance(value, Aside) and value.dim()]
    if name in ("index", "index_put", "index_put_"):  # whose indices may be the CPU's, as with CUDA
        theirs = [value for value in theirs if all(value is not index for index in args[1])]
    if ours and theirs and name not in _MAY_MIX:
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found {NAME} and cpu")
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = operation(*tree_map(_held, args), **{key: tree_map(_held, value) for key, value in kwargs.items()})
    if not (ours if device is None else torch.device(device).type == NAME):
        return result
    # What works in place returns the very tensor that it was given.
    known = {id(value.held): value for value in ours}
    return tree_map(
        lambda value: known[id(value)] if id(value) in known
        else Aside(value) if isinstance(value, torch.Tensor) and not isinstance(value, Aside) else value,
        result,
    )  # fmt: skip


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Aside) else value


class Present(TorchDispatchMode):
    """The device is there within: what is made on it (``torch.zeros(…, device="aside")``) reaches us by this way."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _run(operation, args, kwargs or {})


class Lists(TorchFunctionMode):
    """Lists as indices (``x[:, [0]]``), which torch would bring to the device by a way that avoids all modes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if function is torch.Tensor.__getitem__ and isinstance(args[0], Aside) and isinstance(args[1], tuple):
            places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in args[1])
            args = (args[0], places)
        return function(*args, **(kwargs or {}))
