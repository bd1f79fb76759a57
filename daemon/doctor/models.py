"""The backend's model files: there, whole, as published; which can be fetched and which have a licence to accept.

What the files are the backend says (`stages.protocols.Backend.files`): nothing here names one.
"""

from __future__ import annotations

from collections.abc import Iterator

from daemon.doctor.check import Context, Finding, error, note, ok
from stages.protocols import ConfigurationError, find_backend

HASH_SECONDS = 180.0
"""For reading all files once."""
OPTIONS_WAY = "correct [stages.options]; `poseward config show` says where it is set"


def check_models(context: Context, check: str) -> Iterator[Finding]:
    """Each model file of the configured backend, with its size; by checksum where one is published."""
    stages = context.loaded.settings.stages
    try:
        backend = find_backend(stages.backend)
    except ConfigurationError as problem:
        yield error(check, str(problem), "set stages.backend to one of those")
        return
    try:
        files = backend.files(stages.options, thorough=True)
    except ConfigurationError as problem:
        yield error(check, str(problem), OPTIONS_WAY)
        return
    if not files:
        yield ok(check, f"backend {stages.backend} has no model files")
    for file in files:
        licence = f" [{file.licence}]" if file.licence else ""
        if file.problem is not None:
            yield error(check, file.problem.what + licence, file.problem.way)
        else:
            yield ok(check, file.found + licence)
    own = [str(file.path) for file in files if file.problem is not None and not file.fetchable]
    if own:
        names = ", ".join(own)
        yield note(check, f"no command may fetch these for you, their licence asks for registration: {names}")
