"""Paths from clients: Windows' spelling, roots, links."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.messages import ApiError
from daemon.api.paths import resolve, translate


@pytest.mark.parametrize(
    ("asked", "here"),
    [
        (r"C:\Users\me\a clip.mp4", "/mnt/c/Users/me/a clip.mp4"),
        ("d:/videos/a.mp4", "/mnt/d/videos/a.mp4"),
        (r"\\?\C:\a.mp4", "/mnt/c/a.mp4"),
        (r"\\wsl$\Ubuntu\home\me\a.mp4", "/home/me/a.mp4"),
        (r"\\wsl.localhost\Ubuntu-22.04\home\me\a.mp4", "/home/me/a.mp4"),
        ("//wsl$/Ubuntu/home/me/a.mp4", "/home/me/a.mp4"),
        ("/home/me/back\\slash.mp4", "/home/me/back\\slash.mp4"),
        ("/mnt/c/a.mp4", "/mnt/c/a.mp4"),
    ],
)
def test_windows_paths(asked: str, here: str) -> None:
    assert translate(asked) == here


def refused(path: str, root: Path) -> str:
    with pytest.raises(ApiError) as error:
        resolve(path, [str(root)])
    return error.value.name


def test_only_below_the_roots_with_links_resolved(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (outside / "secret.mp4").write_text("x")
    (root / "clip.mp4").write_text("x")
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "loop").symlink_to(root / "loop")
    (root / "fine.mp4").symlink_to(root / "clip.mp4")
    assert resolve(str(root / "clip.mp4"), [str(root)]) == root / "clip.mp4"
    assert resolve(str(root / "fine.mp4"), [str(root)]) == root / "clip.mp4"
    assert refused(str(root / "link.mp4"), root) == "path-refused"
    assert refused(str(root / ".." / "outside" / "secret.mp4"), root) == "path-refused"
    assert refused(str(tmp_path / "root-of-others.mp4"), root) == "path-refused"
    assert refused("clip.mp4", root) == "path-refused"
    assert refused("/a\0b", root) == "path-refused"
    assert refused(str(root / "missing.mp4"), root) == "no-such-file"
    assert refused("/dev/null", Path("/dev")) == "path-refused"
    assert refused(str(root / "loop"), root) in ("path-refused", "no-such-file")


def test_what_is_outside_is_not_told_apart(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "there").write_text("x")
    assert refused(str(tmp_path / "there"), tmp_path / "root") == refused(
        str(tmp_path / "not-there"), tmp_path / "root"
    )


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    try:
        resolve(text, ["/nonexistent-root"])
    except ApiError as error:
        assert error.name in ("path-refused", "no-such-file")
    else:
        raise AssertionError(text)
