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
from valle2.model_versions import REPORT, all_versions, by_alias, kept_evaluation, one_version, version_names
from valle2.packaging import fetch_bundle, log_voice_model
from valle2.promotion_record import Promotion, check_champion, check_model, last_record, now, put_record, record_of
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
        tags = _tags(lineage, verdict, run_ids or {}, bundle, report)
        version = log_voice_model(client, bundle, metrics, tags, report, name)
    if verdict.passed and client.get_model_version(name, str(version)).tags.get("valle2.status") == "candidate":
        client.set_registered_model_alias(name, "candidate", str(version))
    return version


def challenge(version: int, name: str = MODEL) -> None:
    """Put a candidate up against the champion: it passed the gate, and a person is asked. One at a time.

    Raises:
        ModelError: There is no such version, or it is no candidate.
    """
    client = connect()
    found = one_version(client, name, version)
    if (status := found.tags.get("valle2.status")) not in ("candidate", "challenger"):
        raise ModelError(f"{name}/{version} is {status}; only a candidate can challenge the champion")
    before = by_alias(client, name, "challenger")
    if before is not None and int(before.version) != version and before.tags.get("valle2.status") == "challenger":
        client.set_model_version_tag(name, before.version, "valle2.status", "candidate")
    client.set_model_version_tag(name, str(version), "valle2.status", "challenger")
    client.set_registered_model_alias(name, "challenger", str(version))


def promote(
    version: int, approver: str, reason: str, name: str = MODEL, *, seen_report: str | None = None
) -> Promotion:
    """Make a version champion, by a signed record; the one before it becomes `previous`.

    Promoting the champion again changes nothing.

    Args:
        version: Of the registered model.
        approver: Who decides.
        reason: Why.
        name: Of the registered model.
        seen_report: SHA-256 of the report page that the approver has seen.

    Raises:
        ModelError: There is no such version, the gate rejected it, nobody's name was given, or the report that was seen
            is another version's.
    """
    _check_name(approver)
    client = connect()
    candidate = one_version(client, name, version)
    _check_passed(candidate)
    _check_report(candidate, seen_report)
    current = by_alias(client, name, "champion")
    last = last_record(client, name)
    is_champion = current is not None and int(current.version) == version
    if is_champion and last is not None and last == record_of(candidate):
        return last
    if last is None:
        replaced = int(current.version) if current is not None and not is_champion else None
    else:  # what the alias says may have been set by hand
        replaced = last.replaced if last.version == version else last.version
    return _crown(client, Promotion(
        name, version, candidate.tags.get("valle2.lineage", ""), replaced, approver, reason, now(),
        seen_report=seen_report, **_model_facts(candidate),
    ))  # fmt: skip


def rollback(approver: str, reason: str, name: str = MODEL) -> Promotion:
    """Make the champion before this one champion again, by a signed record of its own.

    The champion that goes is `withdrawn`. Once more, and the one before that returns.

    Raises:
        ModelError: There is no champion, none before it, that one was rejected since, or nobody's name was given.
    """
    _check_name(approver)
    client = connect()
    last = last_record(client, name) if all_versions(client, name) else None
    if last is None:
        raise ModelError(f"{name} has no champion, so there is nothing to roll back; see `valle2 models`")
    if last.replaced is None:
        raise ModelError(
            f"{name}/{last.version} is the first champion: there is none before it; "
            f"`valle2 promote VERSION --approver NAME` makes another version champion"
        )
    restored = one_version(client, name, last.replaced)
    _check_passed(restored)
    before = record_of(restored)
    earlier = before.replaced if before and before.replaced != last.version else None
    return _crown(client, Promotion(
        name, last.replaced, restored.tags.get("valle2.lineage", ""), earlier, approver, reason, now(),
        action="rollback", withdrawn=last.version, **_model_facts(restored),
    ))  # fmt: skip


def _crown(client: "MlflowClient", promotion: Promotion) -> Promotion:
    """The champion's alias moves last: a promotion that is killed before is simply done again."""
    name, version = promotion.model, promotion.version
    put_record(client, promotion)
    client.set_model_version_tag(name, str(version), "valle2.status", "champion")
    _take_aliases(client, name, version, "candidate", "challenger", "previous")
    if promotion.withdrawn is not None:
        client.set_model_version_tag(name, str(promotion.withdrawn), "valle2.status", "withdrawn")
    if promotion.replaced is not None:
        client.set_registered_model_alias(name, "previous", str(promotion.replaced))
        client.set_model_version_tag(name, str(promotion.replaced), "valle2.status", "previous")
    client.set_registered_model_alias(name, "champion", str(version))
    return promotion


def _take_aliases(client: "MlflowClient", name: str, version: int, *aliases: str) -> None:
    for alias in aliases:
        named = by_alias(client, name, alias)
        if named is not None and int(named.version) == version:
            client.delete_registered_model_alias(name, alias)


def reject(version: int, approver: str, reason: str, name: str = MODEL) -> None:
    """Mark a candidate as rejected by a person; it stays in the registry with the reason.

    Raises:
        ModelError: There is no such version, it is the champion, or nobody's name was given.
    """
    _check_name(approver)
    client = connect()
    if one_version(client, name, version).tags.get("valle2.status") == "champion":
        raise ModelError(f"{name}/{version} is the champion; promote another version in its place")
    client.set_model_version_tag(name, str(version), "valle2.status", "rejected")
    client.set_model_version_tag(name, str(version), "valle2.reasons", f"rejected by {approver}: {reason}")
    _take_aliases(client, name, version, "candidate", "challenger")


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
    if last is None and named is None:
        return None
    if named is None:
        raise ModelError(
            f"{name} has no champion though {last.approver if last else ''} promoted {name}/{last.version if last else ''}: "
            f"somebody removed the alias; `valle2 promote {last.version if last else ''} --approver NAME` puts it back"
        )
    found = resolve(f"{name}@champion")
    return CurrentChampion(f"{name}/{found.version}", found.bundle, named)


def versions(name: str = MODEL) -> "list[ModelVersion]":
    """All versions, oldest first."""
    return all_versions(connect(), name)


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


def _check_report(version: "ModelVersion", seen: str | None) -> None:
    own = version.tags.get(REPORT)
    if seen is not None and own is not None and seen != own:
        raise ModelError(
            f"the report that was seen has the digest {seen[:12]}…, that of {version.name}/{version.version} is "
            f"{own[:12]}…; read the report of the version that is to be champion, and give its digest"
        )


def _model_facts(version: "ModelVersion") -> dict[str, Any]:
    """What a promotion record says of the model: the digest of its files, and what the gate found."""
    rules = {key.removeprefix("valle2.gate."): value for key, value in version.tags.items() if "valle2.gate." in key}
    return {"model_sha256": digest(bundle_sha256(fetch_bundle(version))), "gate": dict(sorted(rules.items()))}


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
