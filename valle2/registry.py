"""Voice models in MLflow's registry: candidates, the champion, and those that were rejected.

A model enters with its metrics, the gate's verdict and its lineage. One that the gate rejected stays, with the reasons,
and can never be champion. Nobody is stopped from moving an alias in MLflow itself, so `resolve` refuses a champion that
no promotion record names. Training runs are in `valle2.tracking`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from valle2.errors import ModelError
from valle2.evaluation.gate import Verdict
from valle2.model_card import put_card
from valle2.model_versions import REPORT, all_versions, by_alias, kept_evaluation, one_version, version_names
from valle2.packaging import fetch_bundle, log_voice_model
from valle2.promotion_record import check_champion, check_model, last_record
from valle2.stage import digest, file_sha256
from valle2.tracking import connect, git_commit

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODEL = "valle2"
Status = Literal["candidate", "challenger", "rejected", "champion", "previous", "withdrawn"]


@dataclass(frozen=True)
class Resolved:
    """A voice model that can be loaded.

    Attributes:
        name: As asked for, with the version, such as `valle2/3 (champion)`.
        bundle: The model's folder on this machine.
        lineage: Digest of its record; None for a folder without one.
        version: In the registry; None for a folder.
    """

    name: str
    bundle: Path
    lineage: str | None
    version: int | None = None


def bundle_sha256(bundle: Path) -> dict[str, str]:
    """SHA-256 of every file of a voice model folder, its lineage records left out: they name these digests."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    names = {path.relative_to(bundle).as_posix(): path for path in files}
    return {name: file_sha256(path) for name, path in names.items() if not name.startswith("lineage/")}


def register(
    bundle: Path,
    lineage: str,
    metrics: Mapping[str, Any],
    verdict: Verdict,
    *,
    run_ids: Mapping[str, str] | None = None,
    report: Path | None = None,
    data: Path | None = None,
    name: str = MODEL,
) -> int:
    """Put a voice model into the registry, as candidate or as rejected. Doing it again finds the same version.

    Args:
        bundle: The voice model's folder.
        lineage: Digest of its lineage record.
        metrics: The content of `artifacts/evaluate/metrics.json`.
        verdict: The gate's.
        run_ids: MLflow runs that made it: kind (`ar`, `nar`) to id.
        report: The evaluate stage's output folder; its report page and samples go with the run.
        data: The data-report stage's `report.json`, for the model card.
        name: Of the registered model.

    Returns:
        The version.

    Raises:
        ModelError: The folder is no voice model.
    """
    if not (bundle / "model.json").is_file():
        raise ModelError(f"{bundle} is no voice model folder: it has no model.json; `valle2 evaluate` makes one")
    client = connect()
    version = _find(client, name, lineage)
    if version is None:
        tags = _tags(lineage, verdict, run_ids or {}, bundle, report)
        version = log_voice_model(client, bundle, metrics, tags, report, data, name)
        put_card(client, name, version)
    if verdict.passed and client.get_model_version(name, str(version)).tags.get("valle2.status") == "candidate":
        client.set_registered_model_alias(name, "candidate", str(version))
    return version


def resolve(model: str) -> Resolved:
    """Find a voice model.

    Args:
        model: `valle2@champion`, `valle2@candidate`, `valle2/3`, or a voice model folder.

    Raises:
        ModelError: There is none, or the champion was not promoted by `promote`.
    """
    folder = Path(model)
    if folder.is_dir():
        return _folder(folder)
    name, at, alias = model.partition("@")
    name, _, number = (name, "", "") if at else model.rpartition("/")
    if not name or not (alias if at else number.isdigit()):
        raise ModelError(
            f"no voice model {model!r}: expected `{MODEL}@champion`, `{MODEL}/3` or a folder with a model.json"
        )
    client = connect()
    found = by_alias(client, name, alias) if at else one_version(client, name, number)
    if found is None:
        known = version_names(client, name)
        raise ModelError(f"{name} has no version with the alias {alias!r}; its versions: {known}; run the retrain flow")
    if alias == "champion":
        check_champion(client, found)
    status = found.tags.get("valle2.status", "unknown")
    bundle = fetch_bundle(found)
    if alias == "champion":
        check_model(found, digest(bundle_sha256(bundle)))
    return Resolved(f"{name}/{found.version} ({status})", bundle, found.tags.get("valle2.lineage"), int(found.version))


@dataclass(frozen=True)
class CurrentChampion:
    """The champion of the last signed record.

    Attributes:
        name: Such as `valle2/3`.
        bundle: Its folder on this machine.
        version: As the registry has it.
    """

    name: str
    bundle: Path
    version: "ModelVersion"

    def evaluation(self) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]] | None:
        """Its `metrics.json` and `cases.json`, as kept; None where they were not."""
        return kept_evaluation(connect(), self.version)


def current_champion(name: str = MODEL) -> CurrentChampion | None:
    """The champion, checked as `resolve` does; None where there never was one.

    Raises:
        ModelError: The alias was moved or removed by hand, the signature does not fit, or the files are others.
    """
    client = connect()
    if not all_versions(client, name):
        return None
    last, named = last_record(client, name), by_alias(client, name, "champion")
    if named is None:
        if last is None:
            return None
        raise ModelError(
            f"{name} has no champion though {last.approver} promoted {name}/{last.version} at {last.at}: somebody "
            f"removed the alias; `valle2 promote {last.version} --approver NAME` puts it back"
        )
    found = resolve(f"{name}@champion")
    return CurrentChampion(f"{name}/{found.version}", found.bundle, named)


def versions(name: str = MODEL) -> "list[ModelVersion]":
    """All versions, oldest first."""
    return all_versions(connect(), name)


def _folder(folder: Path) -> Resolved:
    from valle2.trust.lineage import ModelRecord, records_in

    if not (folder / "model.json").is_file():
        raise ModelError(f"{folder} is no voice model folder: it has no model.json; `valle2 evaluate` makes one")
    models = [(name, record) for name, record in records_in(folder).items() if isinstance(record, ModelRecord)]
    files = bundle_sha256(folder) if models else {}
    fitting = [name for name, record in models if record.model_sha256.items() <= files.items()]
    return Resolved(str(folder), folder, fitting[0] if fitting else None)


def _find(client: "MlflowClient", name: str, lineage: str) -> int | None:
    return next(
        (int(item.version) for item in all_versions(client, name) if item.tags.get("valle2.lineage") == lineage), None
    )


def _tags(
    lineage: str, verdict: Verdict, run_ids: Mapping[str, str], bundle: Path, report: Path | None
) -> dict[str, str]:
    tags = {
        "valle2.status": "candidate" if verdict.passed else "rejected",
        "valle2.lineage": lineage,
        "valle2.gate": "passed" if verdict.passed else "failed",
        "valle2.git_commit": git_commit(),
        "valle2.ar_sha256": bundle_sha256(bundle).get("ar.safetensors", ""),
        **{f"valle2.gate.{rule.name}": rule.short for rule in verdict.rules},
        **{f"valle2.run.{kind}": run_id for kind, run_id in run_ids.items()},
    }
    page = report / "report" / "index.html" if report else None
    if page is not None and page.is_file():
        tags[REPORT] = file_sha256(page)
    if verdict.reasons:
        tags["valle2.reasons"] = "; ".join(verdict.reasons)[:5000]
    return tags
