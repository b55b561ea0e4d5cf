"""Promotion records: who made which version champion, signed, so that an alias that was moved by hand is found out.

A record is kept three times: in the version's tags, as the registered model's last one, and in a file of its own beside
the runs. Who may promote, and what follows, is `valle2.registry`'s.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from valle2.errors import ModelError
from valle2.stage import write_json
from valle2.tracking import home
from valle2.trust.signing import Keys

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

RECORD = "valle2.promotion"
SIGNATURE = "valle2.signature"


@dataclass(frozen=True)
class Promotion:
    """Who made a version champion, when, and why.

    Attributes:
        model: Name of the registered model.
        version: The champion.
        lineage: Digest of its lineage record.
        replaced: The champion that a rollback would restore; None for the first.
        approver: Who decided.
        reason: Why.
        at: UTC, ISO 8601.
        action: How it became champion.
        withdrawn: The version that a rollback took the title from.
        model_sha256: Digest of the SHA-256 of all its files.
        gate: What the gate found: rule -> figure and threshold.
        seen_report: SHA-256 of the report page that the approver said to have seen.
    """

    model: str
    version: int
    lineage: str
    replaced: int | None
    approver: str
    reason: str
    at: str
    action: Literal["promote", "rollback"] = "promote"
    withdrawn: int | None = None
    model_sha256: str = ""
    gate: Mapping[str, str] = field(default_factory=dict)
    seen_report: str | None = None


def now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def put_record(client: "MlflowClient", promotion: Promotion) -> None:
    """Sign a record and keep it; the alias is the caller's to move, last."""
    text = json.dumps(asdict(promotion), sort_keys=True)
    signature = Keys(home() / "keys").sign(text)
    stamp = promotion.at.replace(":", "")
    path = home() / "promotions" / f"{promotion.model}-{promotion.version}-{stamp}.json"
    write_json(path, {"promotion": json.loads(text), "signature": signature})
    for tag, value in ((RECORD, text), (SIGNATURE, signature)):
        client.set_model_version_tag(promotion.model, str(promotion.version), tag, value)
        client.set_registered_model_tag(promotion.model, tag, value)


def record_of(version: "ModelVersion") -> Promotion | None:
    """The record in a version's tags, not yet checked; None for one that was never champion."""
    text = version.tags.get(RECORD)
    return Promotion(**json.loads(text)) if text else None


def last_record(client: "MlflowClient", name: str) -> Promotion | None:
    """The registered model's last record, if its signature fits.

    Raises:
        ModelError: It does not.
    """
    tags = client.get_registered_model(name).tags
    if RECORD not in tags:
        return None
    Keys(home() / "keys").verify(tags[RECORD], tags.get(SIGNATURE, ""))
    return Promotion(**json.loads(tags[RECORD]))


def check_champion(client: "MlflowClient", found: "ModelVersion") -> None:
    """A champion needs a signed record of this very version, the last one there is, and must have passed the gate.

    Raises:
        ModelError: The record is missing, of another version, not signed by a trusted key, or older than the last one.
    """
    text = found.tags.get(RECORD, "")
    promotion = json.loads(text) if text else {}
    about = (found.name, int(found.version), found.tags.get("valle2.lineage"))
    named = (promotion.get("model"), promotion.get("version"), promotion.get("lineage"))
    again = f"`valle2 promote {found.version} --approver NAME`"
    if named != about or found.tags.get("valle2.gate") != "passed":
        raise ModelError(
            f"{found.name}/{found.version} has the alias champion but no promotion record: somebody set the alias by "
            f"hand; promote it with {again}, or name the version itself"
        )
    Keys(home() / "keys").verify(text, found.tags.get(SIGNATURE, ""))
    last = last_record(client, found.name)
    if last is not None and last != Promotion(**promotion):
        raise ModelError(
            f"{found.name}/{found.version} has the alias champion, but the last promotion is that of "
            f"{found.name}/{last.version}, by {last.approver} at {last.at}: somebody moved the alias by hand, or a "
            f"promotion was killed; `valle2 promote {last.version} --approver NAME` puts it back, {again} makes it so"
        )


def check_model(found: "ModelVersion", sha256: str) -> None:
    """A champion's files must be those that its record names.

    Args:
        found: The champion.
        sha256: Digest of the SHA-256 of all files at hand.

    Raises:
        ModelError: They were changed since.
    """
    promotion = record_of(found)
    if promotion is not None and promotion.model_sha256 and promotion.model_sha256 != sha256:
        raise ModelError(
            f"the files of {found.name}/{found.version} have the digest {sha256[:12]}…, and {promotion.approver} "
            f"promoted {promotion.model_sha256[:12]}…: somebody changed them; register the model again, or bring the "
            "champion before it back with `valle2 rollback`"
        )
