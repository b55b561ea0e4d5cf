"""What a registered voice model needs to run: its packages and theirs, at the versions that it was made with.

Ranges that packages ask for let newer releases in, which break older ones; a model that waits for a year to be served
must not meet them.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

DIRECT = (
    "mlflow", "torch", "torchaudio", "encodec", "vocos", "safetensors", "tokenizers", "huggingface-hub", "jaxtyping",
    "pydantic", "pyyaml", "soundfile", "num2words", "numpy", "pandas",
)  # fmt: skip
"""What `valle2.voice_model` imports, and MLflow, which serves it."""


def model_requirements() -> list[str]:
    """Pins for pip, sorted: the packages of `DIRECT` and all that they ask for on every platform.

    What is asked for on some platforms alone (CUDA's libraries, a server for Windows) is left to the installer: torch
    pins its own.
    """
    versions: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in DIRECT]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # an extra's, or one that another package stands in for
        # A build's own mark, such as 2.8.0+cpu, is in no public index.
        versions[_canonical(name)] = found.version.partition("+")[0]
        for line in found.requires or []:
            wanted = Requirement(line)
            if not _is_wanted(wanted, extras):
                continue
            item = (_canonical(wanted.name), frozenset(wanted.extras))
            if item not in seen:
                seen.add(item)
                waiting.append(item)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _is_wanted(wanted: Requirement, extras: frozenset[str]) -> bool:
    if wanted.marker is None:
        return True
    if re.search(r"platform|sys_platform|os_name", str(wanted.marker)):
        return False
    return any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
