"""Where the checkout lies, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
"""Clips that are not part of the project; tests that want them are skipped where they are missing."""
