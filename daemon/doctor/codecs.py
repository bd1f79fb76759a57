"""Codecs of the decode stage's PyAV, and of the encoder for overlays."""

from __future__ import annotations

from collections.abc import Iterator

from daemon.doctor.check import Context, Finding, error, ok, warning
from daemon.doctor.interpreters import interpreter


def check_codecs(context: Context, check: str) -> Iterator[Finding]:
    """Can the decode stage open what phones and cameras record; can an overlay be written and read back?"""
    found = interpreter(context, "decode")
    reinstall = f"{found.python} -m pip install --force-reinstall av (its wheels bring all of these along)"
    if found.codecs is None:
        yield error(
            check,
            f"not known: {found.python} cannot import av, which decodes videos",
            f"see stages.decode above, or {found.python} -m pip install av",
        )
        return
    if lacking := found.codecs["lacking"]:
        yield warning(
            check, f"videos in {', '.join(lacking)} cannot be decoded: this build of av lacks it", reinstall
        )
    encoders = found.codecs["encoders"]
    if not encoders:
        yield warning(
            check,
            "neither libx264 nor mpeg4 can encode: no overlays",
            f'{reinstall}, or leave "overlay" out of results.exports',
        )
    elif "libx264" not in encoders:
        yield warning(check, "overlays are made with mpeg4, which browsers do not play: no libx264", reinstall)
    if not lacking and "libx264" in encoders:
        yield ok(check, "h264, hevc, vp9, av1 and mpeg4 can be decoded; overlays are made with libx264")
