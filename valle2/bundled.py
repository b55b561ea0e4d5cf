"""Where the small models that ship with the project are."""

from pathlib import Path

from valle2.errors import ConfigError

MODELS = Path("demo/models")


def bundled(name: str) -> Path:
    """Folder of a bundled model.

    The working copy's own comes first, so that a run uses the models of the revision that it runs.

    Args:
        name: `encodec`, `vocos`, `whisper` or `aligner`.

    Raises:
        ConfigError: Neither the working folder nor the installed source tree holds it.
    """
    for root in (Path(), Path(__file__).resolve().parents[1]):
        folder = root / MODELS / name
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    raise ConfigError(f"the bundled {name} is missing at {MODELS / name}; run in a clone of the repository")
