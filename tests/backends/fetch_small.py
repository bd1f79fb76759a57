"""The 4D-Humans backend with files of a few kilobytes in place of its weights, under the same names and rules."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stages.backends.humans4d import BACKEND as REAL
from stages.backends.humans4d import models
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.weights import FILES, WeightFile
from stages.protocols import FetchView, ModelFile


def content(file: WeightFile) -> bytes:
    """Random, of each file's own; the detectors' are larger, so that they can be interrupted."""
    return random.Random(file.option).randbytes(3_000_000 if file.detector else 20_000)


def _small(file: WeightFile) -> WeightFile:
    url = file.url
    if url is not None and file.sha256_begins:
        # Detectron2 writes the beginning of the checksum into the name.
        url = url.replace(file.sha256_begins, hashlib.sha256(content(file)).hexdigest()[:6])
    return replace(file, url=url, at_least=min(file.at_least, 10_000))


SMALL: tuple[WeightFile, ...] = tuple(map(_small, FILES))


def packed(extra: Sequence[tuple[str, bytes]] = (), leave: str = "") -> bytes:
    """The archive, its members beginning with ./ as upstream's may; ``leave`` is a member to leave out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in [
            *extra,
            *((f"./{f.member}", content(f)) for f in SMALL if f.member and f.member != leave),
        ]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def served() -> dict[str, bytes]:
    """What a mirror has, by path."""
    found = {f.url.rsplit("/", 1)[-1]: packed() if f.member else content(f) for f in SMALL if f.url}
    return {f"/{name}": data for name, data in found.items()}


def _files(options: Mapping[str, Any], *, thorough: bool) -> Sequence[ModelFile]:
    return models.look(Options.from_mapping(options), thorough=thorough, files=SMALL)


def _fetch(options: Mapping[str, Any], view: FetchView, source: str = "") -> None:
    models.fetch(Options.from_mapping(options), view, source, files=SMALL)


BACKEND = replace(REAL, name="tests.backends.fetch_small", files=_files, fetch=_fetch)
