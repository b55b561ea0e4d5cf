"""What a training's record says of its data: digest, shape and profile, for MLflow's dataset page.

The profile is the data report's metrics where the report is of these very shards, else what the shards' manifest tells;
with it, how fast the data stages were. It is read for the record alone: no byte of a model comes from it.
"""

import json
from typing import Any

from valle2.stage import output
from valle2.throughput import speeds


def describe_data(digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schema and profile of the shards in `artifacts/tokenize`, JSON-able.

    Args:
        digest: SHA-256 of the shards' manifest, which the data report must name to be taken.
    """
    path = output("tokenize") / "manifest.json"
    manifest = json.loads(path.read_text()) if path.is_file() else {"splits": {}}
    names = ("codec", "sample_rate", "frame_rate", "num_codebooks", "codebook_size")
    schema = {"codes": "int16 [codebook, frame]", "text": "normalised", "speaker": "name"}
    schema |= {name: manifest[name] for name in names if name in manifest}
    profile = _reported(digest) or {
        "hours": {split: round(of["seconds"] / 3600, 5) for split, of in manifest["splits"].items()},
        "segments": {split: of["cuts"] for split, of in manifest["splits"].items()},
    }
    rates = {speed.stage: speed.rate for speed in speeds() if speed.rate is not None}
    return schema, profile | ({"audio_hours_per_hour": rates} if rates else {})


def _reported(digest: str) -> dict[str, Any]:
    path = output("data-report") / "report.json"
    report = json.loads(path.read_text()) if path.is_file() else {}
    metrics: dict[str, Any] = report.get("metrics", {})
    return metrics if report.get("made_of", {}).get("shards") == digest else {}
