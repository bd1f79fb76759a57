"""From settings to processes: whose code counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stages.owner.processes import HOUSE, code_roots
from stages.protocols import ConfigurationError, find_backend
from supervisor.fingerprint import fingerprint
from tests.stages.harness import Run


def test_only_poseward_s_packages_and_the_backend_s_own_folder_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "mine" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(
        "from tests.stages.blocks import BACKEND\nimport mine.models.layers\nimport lonely\n"
    )
    (package / "layers.py").touch()
    (package.parent.parent / "lonely.py").write_text("from tests.stages.blocks import BACKEND\n")
    monkeypatch.syspath_prepend(str(package.parent.parent))
    find_backend("mine.models")
    try:
        loaded = fingerprint(code_roots("mine.models"))
        assert {str(package / "__init__.py"), str(package / "layers.py")} <= set(loaded)
        assert str(package.parent.parent / "lonely.py") not in loaded
        inside = [Path(path).relative_to(HOUSE) for path in loaded if Path(path).is_relative_to(HOUSE)]
        assert {path.parts[0] for path in inside} <= {"daemon", "stages", "supervisor"}
        assert "stages/owner/processes.py" in map(str, inside)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("mine", "lonely")]:
            del sys.modules[name]


@pytest.mark.parametrize("backend", ["blazepose", "humans4d"])
def test_backends_that_come_along_need_no_root_of_their_own(backend: str) -> None:
    find_backend(backend)
    assert [Path(root).name for root in code_roots(backend)] == ["daemon", "stages", "supervisor"]


def test_a_fault_that_is_none_is_named_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match=r"stages\.faults: .*mesh:slow=1"):
        Run(faults=("mesh:slow=1",))
