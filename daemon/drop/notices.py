"""What is written beside a file in ``done/`` and ``failed/``."""

from __future__ import annotations

from daemon.jobs.store import StoredJob


def results_notice(job: StoredJob) -> str:
    """For a file whose job is done."""
    lines = [f"job: {job.id}", f"results: {job.results or 'see `poseward results ' + job.id + '`'}"]
    if job.same_as:
        lines.append(f"The same content was done before, as job {job.same_as}; these are its results.")
        lines.append("To have it computed anew, drop it with a sidecar that says recompute = true.")
    if job.message:
        lines.append(f"note: {job.message}")
    return "\n".join(lines) + "\n"


def error_notice(error: str, message: str, job: str | None) -> str:
    """For a file whose job has failed or was cancelled, or that never became a job."""
    lines = [f"error: {error}", message]
    if job is not None:
        lines.append(f"job: {job} (`poseward logs {job}` tells its story)")
    lines.append("To have it done again, move the file back into the folder above.")
    return "\n".join(line for line in lines if line) + "\n"
