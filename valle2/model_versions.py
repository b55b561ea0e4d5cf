"""Looking up versions in MLflow's registry, with errors that say what there is."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.errors import ModelError
from valle2.tracking import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

EVALUATION = "evaluation"
"""Folder of a version's run with `metrics.json` and `cases.json`, which a later model is compared with."""
DATA = "data-report.json"
"""In the same folder: what the data-report stage found of the data."""
REPORT = "valle2.report_sha256"
"""Tag: SHA-256 of the version's report page."""


def all_versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """Of a registered model, oldest first."""
    found = client.search_model_versions(f"name='{name}'", max_results=1000)
    return sorted(found, key=lambda item: int(item.version))


def version_names(client: "MlflowClient", name: str) -> str:
    """In words, for messages."""
    return ", ".join(f"{name}/{item.version}" for item in all_versions(client, name)) or "none yet"


def one_version(client: "MlflowClient", name: str, number: str | int) -> "ModelVersion":
    """A version by its number.

    Raises:
        ModelError: There is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        known = version_names(client, name)
        raise ModelError(f"no registered model {name}/{number} in {tracking_uri()}; its versions: {known}") from error


def by_alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """The version that an alias names."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def kept_json(client: "MlflowClient", version: "ModelVersion", path: str) -> Any:
    """A JSON file of a version's run; None where it has none."""
    from mlflow.exceptions import MlflowException

    if version.run_id is None:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            return json.loads(Path(client.download_artifacts(version.run_id, path, folder)).read_text())
    except (MlflowException, OSError):
        return None


def kept_evaluation(
    client: "MlflowClient", version: "ModelVersion"
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]] | None:
    """A version's `metrics.json` and `cases.json` as they were when it was registered; None where its run has none."""
    metrics, cases = (kept_json(client, version, f"{EVALUATION}/{name}.json") for name in ("metrics", "cases"))
    return None if metrics is None or cases is None else (metrics, cases)
