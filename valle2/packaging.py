"""A voice model as MLflow stores it: logged with its metrics and report, and fetched back as a folder.

Logged once, by `valle2.registry.register`; what runs when MLflow loads it is `valle2.voice_model`.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.errors import ModelError
from valle2.model_requirements import model_requirements
from valle2.model_versions import DATA, EVALUATION
from valle2.tracking import environment, experiment_id, home, quieten, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient


def log_voice_model(
    client: "MlflowClient",
    bundle: Path,
    metrics: Mapping[str, Any],
    tags: Mapping[str, str],
    report: Path | None,
    data: Path | None,
    name: str,
) -> int:
    """Log metrics, report and model to a run of its own, and register the model.

    Args:
        client: Of the tracking store and registry.
        bundle: The voice model's folder.
        metrics: Figures become metrics, names parameters.
        tags: Of the run and of the version.
        report: Folder with `report/`, `samples/` and `cases.json`, kept with the run; the cases as a table.
        data: The data-report stage's `report.json`.
        name: Of the registered model.

    Returns:
        The version.
    """
    quieten()
    import mlflow
    from mlflow.exceptions import MlflowException

    from valle2.evaluation.report_tables import case_table, figure_table

    figures = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    about = {key: str(value) for key, value in metrics.items() if isinstance(value, str)}
    run_tags = {"valle2.stage": "evaluate", **tags, **{f"valle2.env.{k}": v for k, v in environment().items()}}
    with (
        mlflow.start_run(None, experiment_id(client), "evaluate", tags=run_tags, log_system_metrics=False) as run,
        warnings.catch_warnings(),
    ):
        # MLflow asks for an example input, which would be a voice.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        mlflow.log_metrics(figures)
        mlflow.log_params({key: value[:500] for key, value in about.items()})
        for part in ("report", "samples"):
            if report is not None and (report / part).is_dir():
                mlflow.log_artifacts(str(report / part), part)
        for file in ("metrics.json", "cases.json"):
            if report is not None and (report / file).is_file():
                mlflow.log_artifact(str(report / file), EVALUATION)
        if data is not None and data.is_file():
            mlflow.log_dict(json.loads(data.read_text()), f"{EVALUATION}/{DATA}")
        if report is not None and (report / "cases.json").is_file():
            cases = json.loads((report / "cases.json").read_text())
            mlflow.log_table(case_table(cases), "tables/cases.json")
            mlflow.log_table(figure_table(metrics, cases), "tables/figures.json")
        logged = mlflow.pyfunc.log_model(
            name="voice",
            python_model=str(Path(__file__).with_name("voice_model.py")),
            artifacts={"bundle": str(bundle)},
            signature=_signature(),
            pip_requirements=model_requirements(),
            code_paths=[str(Path(__file__).parent)],
        )
    try:
        client.create_registered_model(name, description="VALL-E 2 voice model; see the tags of each version")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name, logged.model_uri, run.info.run_id, dict(tags), description=_card(metrics, tags), model_id=logged.model_id
    )
    return int(made.version)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import DataType

    inputs = Schema([ColSpec(DataType.string, name) for name in ("text", "prompt_text", "prompt_wav")])
    outputs = Schema(
        [
            ColSpec(DataType.string, "wav"),
            ColSpec(DataType.long, "sample_rate"),
            ColSpec(DataType.string, "finish_reason"),
        ]
    )
    # A negative value stands for the model's own: MLflow's parameters cannot be absent.
    params = [
        ParamSpec("seed", DataType.long, 0),
        ParamSpec("top_p", DataType.double, -1.0),
        ParamSpec("max_seconds", DataType.double, -1.0),
    ]
    return ModelSignature(inputs, outputs, ParamSchema(params))


def _card(metrics: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    rules = [f"- {key.removeprefix('valle2.gate.')}: {value}" for key, value in tags.items() if "valle2.gate." in key]
    names = [f"- {key}: {value}" for key, value in sorted(metrics.items()) if isinstance(value, str)]
    lineage = f"Lineage `{tags['valle2.lineage']}`, commit `{tags['valle2.git_commit']}`."
    return "\n".join([f"Gate {tags['valle2.gate']}:", *rules, "", "Metric models:", *names, "", lineage])


def fetch_bundle(found: "ModelVersion") -> Path:
    """The version's voice model folder: in place in a local store, else downloaded once."""
    import mlflow

    uri = f"models:/{found.name}/{found.version}"
    if tracking_uri().startswith("sqlite"):
        return _bundle_in(Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)), uri)
    identity = f"{tracking_uri()} {uri} {found.tags.get('valle2.lineage')}"
    target = home() / "models" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not target.is_dir():
        building = target.with_suffix(".partial")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(building))
        building.replace(target)
    return _bundle_in(target, uri)


def _bundle_in(folder: Path, uri: str) -> Path:
    found = next(iter(sorted(folder.glob("artifacts/*/model.json"))), None)
    if found is None:
        raise ModelError(f"{uri} holds no voice model (no artifacts/*/model.json in {folder}); register it again")
    return found.parent
