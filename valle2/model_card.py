"""The model card: what a version is for, what it was made of, how good it is, its limits and risks. From facts alone.

Made when a version is registered, and again when its status changes; kept as `MODEL_CARD.md` with its run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from valle2.model_versions import DATA, EVALUATION, kept_json, one_version
from valle2.packaging import fetch_bundle
from valle2.promotion_record import record_of
from valle2.tracking import connect
from valle2.trust.lineage import ModelRecord, records_in

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CARD = "MODEL_CARD.md"
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
FIGURES = (
    ("wer", "WER, %", 100), ("sim_own", "SIM", 1), ("dnsmos", "DNSMOS", 1), ("inf", "INF, %", 100),
    ("cut", "CUT, %", 100),
)  # fmt: skip
"""Key in `metrics.json`, title and factor."""
ROWS = (
    ("", "this model"), ("reconstruction_", "codec alone"), ("ground_truth_", "the speakers"),
    ("hard_", "this model, hard texts"),
)  # fmt: skip


def put_card(client: "MlflowClient", name: str, version: int) -> None:
    """Write a version's card to its run, in place of an earlier one."""
    found = one_version(client, name, version)
    if found.run_id is not None:
        client.log_text(found.run_id, model_card(client, found), CARD)


def card_of(name: str, version: int) -> str:
    """A version's card, made anew.

    Raises:
        ModelError: There is no such version.
    """
    client = connect()
    return model_card(client, one_version(client, name, version))


def model_card(client: "MlflowClient", version: "ModelVersion") -> str:
    """The card as Markdown."""
    tags, bundle = version.tags, fetch_bundle(version)
    rules = {key.removeprefix("valle2.gate."): found for key, found in tags.items() if "valle2.gate." in key}
    facts = json.loads((bundle / "model.json").read_text())
    metrics = kept_json(client, version, f"{EVALUATION}/metrics.json") or {}
    data = kept_json(client, version, f"{EVALUATION}/{DATA}")
    record = records_in(bundle).get(tags.get("valle2.lineage", ""))
    environment = jinja2.Environment(keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        name=f"{version.name}/{version.version}",
        about=f"A VALL-E 2 voice model ({tags.get('valle2.status', 'unknown')}).",
        lineage=tags.get("valle2.lineage", "none"), commit=tags.get("valle2.git_commit", "unknown"), data=data,
        languages=sorted(data["languages"]) if data else [], architecture=_architecture(facts),
        parent=record.parent_model if isinstance(record, ModelRecord) else None, metrics=metrics,
        figures=[{"title": title} for _, title, _ in FIGURES], rows=_rows(metrics), models=_models(metrics),
        gate=tags.get("valle2.gate", "not judged"), promotion=record_of(version), limits=_limits(facts, metrics),
        rules=sorted(rules.items()),
        percent=lambda share: f"{100 * share:.0f} %",
    )  # fmt: skip


def _architecture(facts: Mapping[str, Any]) -> str:
    shapes = (
        f"{kind.upper()} with {facts[kind]['num_layers']} layers of width {facts[kind]['dim']}"
        for kind in ("ar", "nar")
    )
    codec = f"{facts['num_codebooks']} codebooks of {facts.get('codebook_size', 1024)} codes"
    return f"VALL-E 2 (arXiv:2406.05370): {', '.join(shapes)}; groups of {facts['group_size']} codes; {codec}."


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"title": title, "cells": [_cell(metrics, prefix + key, factor) for key, _, factor in FIGURES]}
        for prefix, title in ROWS
    ]
    return [row for row in rows if any(cell != "–" for cell in row["cells"])]


def _cell(metrics: Mapping[str, Any], key: str, factor: int) -> str:
    values = [metrics[key + end] for end in ("", "_low", "_high") if metrics.get(key + end) is not None]
    if len(values) < 3:
        return "–"
    value, low, high = (f"{factor * value:.{1 if factor > 1 else 3}f}" for value in values)
    return f"{value} ({low} to {high})"


def _models(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in sorted(metrics.items()) if key.endswith("_model") or key == "decoder"]


def _limits(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """What follows from the model's shape and its evaluation."""
    found = [
        f"Text and prompt's text together: {facts['ar']['max_text_tokens']} tokens at a time; longer texts are read "
        "sentence by sentence.",
        f"Prompt and speech together: {facts['ar']['max_frames']} frames at a time.",
    ]
    if str(metrics.get("wer_model", "")).startswith("bundled"):
        found.append("WER was measured by the bundled recogniser, which knows the words of the demo's corpus alone.")
    if "hard_wer" not in metrics:
        found.append("It was not tried on hard texts.")
    return found
