"""Shapes in signatures are checked while tests run; one thread a test keeps results the same on any machine."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["valle2.model", "valle2.synthesis", "valle2.decoding", "valle2.codec"], "beartype.beartype")

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Folder of real speech; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("VALLE2_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "LibriSpeech").is_dir():
        pytest.skip(f"no real speech at {folder}; set VALLE2_TEST_DATA to a folder with LibriSpeech/ in it")
    return folder
