"""Who is champion: candidates are put up, promoted, rejected, and a promotion is taken back. Each by a signed record.

What a record is, and how an alias that was moved by hand is found out, is `valle2.promotion_record`'s.
"""

from typing import TYPE_CHECKING, Any

from valle2.errors import ModelError
from valle2.model_card import put_card
from valle2.model_versions import REPORT, all_versions, by_alias, one_version
from valle2.packaging import fetch_bundle
from valle2.promotion_record import Promotion, last_record, now, put_record, record_of
from valle2.registry import MODEL, bundle_sha256
from valle2.stage import digest
from valle2.tracking import connect

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


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
    put_card(client, name, version)
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
    put_card(client, name, version)


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
