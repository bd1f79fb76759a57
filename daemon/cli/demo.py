"""``poseward demo-clip``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo-clip")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seconds", type=click.FloatRange(min=0.1, max=600), default=5.0, show_default=True)
def demo_clip(out: Path, seconds: float) -> None:
    """Make the clip that `make demo` uses.

    Drawn people walk through a drawn scene: free of anybody's rights, and found by the detector like any other
    video.
    """
    from daemon.cli.demo_clip import make_demo_clip

    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".part-{out.name}")
    try:
        make_demo_clip(beside, seconds=seconds)
        beside.rename(out)
    finally:
        beside.unlink(missing_ok=True)
    click.echo(out)
