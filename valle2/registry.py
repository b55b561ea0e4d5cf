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
from valle2.packaging import fetch_bundle, log_voice_model
from valle2.promotion_record import Promotion, check_champion, last_record, now, put_record, record_of
from valle2.stage import file_sha256
from valle2.tracking import connect, git_commit, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODEL = "valle2"
Status = Literal["candidate", "rejected", "champion", "previous", "withdrawn"]


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
        tags = _tags(lineage, verdict, run_ids or {}, bundle)
        version = log_voice_model(client, bundle, metrics, tags, report, name)
    if verdict.passed and client.get_model_version(name, str(version)).tags.get("valle2.status") == "candidate":
        client.set_registered_model_alias(name, "candidate", str(version))
    return version


def promote(version: int, approver: str, reason: str, name: str = MODEL) -> Promotion:
    """Make a version champion, by a signed record; the one before it becomes `previous`.

    Promoting the champion again changes nothing.

    Raises:
        ModelError: There is no such version, the gate rejected it, or nobody's name was given.
    """
    _check_name(approver)
    client = connect()
    candidate = _version(client, name, str(version))
    _check_passed(candidate)
    current = _alias(client, name, "champion")
    last = last_record(client, name)
    is_champion = current is not None and int(current.version) == version
    if is_champion and last is not None and last == record_of(candidate):
        return last
    if last is None:
        replaced = int(current.version) if current is not None and not is_champion else None
    else:  # what the alias says may have been set by hand
        replaced = last.replaced if last.version == version else last.version
    promotion = Promotion(name, version, candidate.tags.get("valle2.lineage", ""), replaced, approver, reason, now())
    _crown(client, promotion)
    return promotion


def rollback(approver: str, reason: str, name: str = MODEL) -> Promotion:
    """Make the champion before this one champion again, by a signed record of its own.

    The champion that goes is `withdrawn`. Once more, and the one before that returns.

    Raises:
        ModelError: There is no champion, none before it, that one was rejected since, or nobody's name was given.
    """
    _check_name(approver)
    client = connect()
    last = last_record(client, name) if _versions(client, name) else None
    if last is None:
        raise ModelError(f"{name} has no champion, so there is nothing to roll back; see `valle2 models`")
    if last.replaced is None:
        raise ModelError(
            f"{name}/{last.version} is the first champion: there is none before it; "
            f"`valle2 promote VERSION --approver NAME` makes another version champion"
        )
    restored = _version(client, name, str(last.replaced))
    _check_passed(restored)
    before = record_of(restored)
    earlier = before.replaced if before and before.replaced != last.version else None
    promotion = Promotion(
        name, last.replaced, restored.tags.get("valle2.lineage", ""), earlier, approver, reason, now(),
        action="rollback", withdrawn=last.version,
    )  # fmt: skip
    _crown(client, promotion)
    return promotion


def _crown(client: "MlflowClient", promotion: Promotion) -> None:
    """The champion's alias moves last: a promotion that is killed before is simply done again."""
    name, version = promotion.model, promotion.version
    put_record(client, promotion)
    client.set_model_version_tag(name, str(version), "valle2.status", "champion")
    for alias in ("candidate", "previous"):
        named = _alias(client, name, alias)
        if named is not None and int(named.version) == version:
            client.delete_registered_model_alias(name, alias)
    if promotion.withdrawn is not None:
        client.set_model_version_tag(name, str(promotion.withdrawn), "valle2.status", "withdrawn")
    if promotion.replaced is not None:
        client.set_registered_model_alias(name, "previous", str(promotion.replaced))
        client.set_model_version_tag(name, str(promotion.replaced), "valle2.status", "previous")
    client.set_registered_model_alias(name, "champion", str(version))


def reject(version: int, approver: str, reason: str, name: str = MODEL) -> None:
    """Mark a candidate as rejected by a person; it stays in the registry with the reason.

    Raises:
        ModelError: There is no such version, it is the champion, or nobody's name was given.
    """
    _check_name(approver)
    client = connect()
    if _version(client, name, str(version)).tags.get("valle2.status") == "champion":
        raise ModelError(f"{name}/{version} is the champion; promote another version in its place")
    client.set_model_version_tag(name, str(version), "valle2.status", "rejected")
    client.set_model_version_tag(name, str(version), "valle2.reasons", f"rejected by {approver}: {reason}")
    named = _alias(client, name, "candidate")
    if named is not None and int(named.version) == version:
        client.delete_registered_model_alias(name, "candidate")


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
    found = _alias(client, name, alias) if at else _version(client, name, number)
    if found is None:
        known = ", ".join(f"{name}/{item.version}" for item in _versions(client, name)) or "none yet"
        raise ModelError(f"{name} has no version with the alias {alias!r}; its versions: {known}; run the retrain flow")
    if alias == "champion":
        check_champion(client, found)
    status = found.tags.get("valle2.status", "unknown")
    bundle = fetch_bundle(found)
    return Resolved(f"{name}/{found.version} ({status})", bundle, found.tags.get("valle2.lineage"), int(found.version))


def versions(name: str = MODEL) -> "list[ModelVersion]":
    """All versions, oldest first."""
    return _versions(connect(), name)


def _check_passed(version: "ModelVersion") -> None:
    if version.tags.get("valle2.status") == "rejected" or version.tags.get("valle2.gate") != "passed":
        why = version.tags.get("valle2.reasons") or "it never went through the gate"
        raise ModelError(
            f"{version.name}/{version.version} cannot be champion: {why}; train a better one, or change the `gate` "
            "section"
        )


def _check_name(approver: str) -> None:
    if not approver.strip():
        raise ModelError("a decision needs the name of who takes it, found none; give one with --approver NAME")


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
        (int(item.version) for item in _versions(client, name) if item.tags.get("valle2.lineage") == lineage), None
    )


def _versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    found = client.search_model_versions(f"name='{name}'", max_results=1000)
    return sorted(found, key=lambda item: int(item.version))


def _version(client: "MlflowClient", name: str, number: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        known = ", ".join(f"{name}/{item.version}" for item in _versions(client, name)) or "none yet"
        raise ModelError(f"no registered model {name}/{number} in {tracking_uri()}; its versions: {known}") from error


def _alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _tags(lineage: str, verdict: Verdict, run_ids: Mapping[str, str], bundle: Path) -> dict[str, str]:
    tags = {
        "valle2.status": "candidate" if verdict.passed else "rejected",
        "valle2.lineage": lineage,
        "valle2.gate": "passed" if verdict.passed else "failed",
        "valle2.git_commit": git_commit(),
        "valle2.ar_sha256": bundle_sha256(bundle).get("ar.safetensors", ""),
        **{f"valle2.gate.{rule.name}": rule.short for rule in verdict.rules},
        **{f"valle2.run.{kind}": run_id for kind, run_id in run_ids.items()},
    }
    if verdict.reasons:
        tags["valle2.reasons"] = "; ".join(verdict.reasons)[:5000]
    return tags
