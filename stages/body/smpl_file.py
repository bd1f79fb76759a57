"""Reads SMPL model files without running code that they may carry.

A pickle can name any function to be called while it is read. SMPL's own files need only the
reconstruction of numpy arrays, scipy sparse matrices and, in the original release, chumpy's array class:
those are allowed (the last as an inert stand-in, so chumpy need not be installed), and all else is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from stages.body.skeleton import JOINT_PARENTS
from stages.protocols import ConfigurationError

F64 = npt.NDArray[np.float64]
BETAS = 10
"""Shape coefficients that are used; files with more are cut."""


@dataclass(frozen=True)
class SmplArrays:
    """What stands in an SMPL file, float64 metres: ``template`` (V, 3), ``shapedirs`` (V, 3, 10), ``posedirs``
    (V, 3, 207), ``joint_regressor`` (24, V), ``weights`` (V, 24), ``faces`` (F, 3) int32."""

    template: F64
    shapedirs: F64
    posedirs: F64
    joint_regressor: F64
    weights: F64
    faces: npt.NDArray[np.int32]


def read_smpl(path: Path) -> SmplArrays:
    """Read an SMPL model from ``path``, a .pkl of the original release or of smplx, or a .npz.

    Raises:
        ConfigurationError: missing, unreadable, holding anything but arrays, or not SMPL by its shapes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"option smpl_model: cannot read {path} ({error.strerror}); SMPL files come from "
            "https://smpl.is.tue.mpg.de after registration. Without the option Poseward's own body is used"
        ) from error
    fields = _read_npz(path, content) if zipfile.is_zipfile(io.BytesIO(content)) else _read_pickle(path, content)
    return _checked(path, fields)


class _ChumpyArray:
    """Stands in for chumpy.Ch while unpickling: keeps the state, computes nothing."""

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def _reconstruct_object(kind: object, base: object, state: object) -> _ChumpyArray:
    """What copyreg._reconstructor does for plain objects, for the stand-in alone."""
    if kind is not _ChumpyArray or base is not object or state is not None:
        raise pickle.UnpicklingError(f"refused to construct {kind!r}")
    return _ChumpyArray()


def _scalar(dtype: object, data: object = None) -> object:
    """A numpy scalar; those of object type could hide another pickle."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, (bytes, str)):
        raise pickle.UnpicklingError(f"refused a numpy scalar of type {dtype!r}")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype, 1)[0]


def _array(kind: object, shape: object, _typecode: object) -> npt.NDArray[Any]:
    """The empty array that ndarray.__setstate__ fills."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"refused to construct {kind!r}")
    empty: npt.NDArray[Any] = np.ndarray((0,), np.int8)
    return empty


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as protocol 2 pickles of Python 3 write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("refused to encode anything but latin1 text")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
        ("chumpy.ch", "Ch"): _ChumpyArray,
        ("chumpy", "Ch"): _ChumpyArray,
        ("chumpy.reordering", "Select"): _ChumpyArray,
        ("builtins", "object"): object,
        ("__builtin__", "object"): object,
        ("copyreg", "_reconstructor"): _reconstruct_object,
        ("copy_reg", "_reconstructor"): _reconstruct_object,
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "_reconstruct"] = _array
        found[f"{core}.multiarray", "scalar"] = _scalar
    for layout in ("csc", "csr", "coo"):
        for module in (f"scipy.sparse.{layout}", f"scipy.sparse._{layout}"):
            for suffix in ("matrix", "array"):
                found[module, f"{layout}_{suffix}"] = getattr(scipy.sparse, f"{layout}_{suffix}")
    return found


_ALLOWED = _allowed()


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no SMPL file needs") from None


def _read_pickle(path: Path, content: bytes) -> Mapping[str, Any]:
    try:
        fields = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise ConfigurationError(
            f"option smpl_model: {path} is refused as an SMPL pickle: {error}. Use the file as downloaded from "
            "https://smpl.is.tue.mpg.de, or one that smplx has converted"
        ) from error
    if not isinstance(fields, dict):
        raise ConfigurationError(
            f"option smpl_model: {path} holds a {type(fields).__name__}, where an SMPL file holds a dictionary"
        )
    return fields


def _read_npz(path: Path, content: bytes) -> Mapping[str, Any]:
    wanted = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in wanted if name in stored}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"option smpl_model: {path} is refused as a .npz of plain arrays: {error}. Name the .pkl instead"
        ) from error


def _dense(path: Path, fields: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    if name not in fields:
        raise ConfigurationError(
            f"option smpl_model: {path} has no {name!r} and is not an SMPL model (it has "
            f"{', '.join(sorted(map(str, fields)))[:200] or 'nothing'})"
        )
    value = fields[name]
    if isinstance(value, _ChumpyArray):
        value = value.state.get("x")
    if scipy.sparse.issparse(value):
        value = value.toarray()
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ConfigurationError(f"option smpl_model: {path}: {name!r} is not an array of numbers")
    return array


def _checked(path: Path, fields: Mapping[str, Any]) -> SmplArrays:
    template = _dense(path, fields, "v_template").astype(np.float64)
    if template.ndim != 2 or template.shape[1] != 3:
        raise ConfigurationError(f"option smpl_model: {path}: v_template has shape {template.shape}, not (V, 3)")
    count, joints = len(template), len(JOINT_PARENTS)
    shapedirs = _dense(path, fields, "shapedirs").astype(np.float64)
    posedirs = _dense(path, fields, "posedirs").astype(np.float64)
    regressor = _dense(path, fields, "J_regressor").astype(np.float64)
    weights = _dense(path, fields, "weights").astype(np.float64)
    faces = _dense(path, fields, "f").astype(np.int32)
    expected: tuple[tuple[str, npt.NDArray[Any], tuple[int, ...]], ...] = (
        ("shapedirs", shapedirs[..., :BETAS], (count, 3, BETAS)),
        ("posedirs", posedirs, (count, 3, 9 * (joints - 1))),
        ("J_regressor", regressor, (joints, count)),
        ("weights", weights, (count, joints)),
        ("f", faces, (len(faces), 3)),
    )
    for name, array, shape in expected:
        if array.shape != shape:
            raise ConfigurationError(
                f"option smpl_model: {path}: {name} has shape {array.shape} where SMPL has {shape}; models of "
                "the SMPL family with hands or faces (SMPL-H, SMPL-X) do not fit"
            )
    parents = _dense(path, fields, "kintree_table")[0].astype(np.int64)
    if tuple(parents[1:]) != JOINT_PARENTS[1:]:
        raise ConfigurationError(f"option smpl_model: {path}: kintree_table is not SMPL's skeleton")
    if faces.size and not (faces.min() >= 0 and faces.max() < count):
        raise ConfigurationError(f"option smpl_model: {path}: faces name vertices beyond the {count} there are")
    return SmplArrays(template, shapedirs[..., :BETAS], posedirs, regressor, weights, faces)
