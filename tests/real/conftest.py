"""Where the real data are; tests of them are skipped where they are absent."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with ``screens``, ``cells``, ``profiles`` and ``pathways``."""
    folder = Path(os.environ.get("TADVAE_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    if not folder.is_dir():
        if os.environ.get("TADVAE_REQUIRE_DATA"):  # continuous integration beside the data
            pytest.fail(f"TADVAE_REQUIRE_DATA is set, but the real data are not at {folder}")
        pytest.skip("no real data: set TADVAE_DATA to their folder")
    return folder
