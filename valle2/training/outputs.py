"""What a training stage leaves: weights, the model's description, and the curves."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from valle2.stage import write_json, write_text


def write_outputs(
    folder: Path, weights: dict[str, Tensor], description: dict[str, Any], history: list[dict[str, float]]
) -> dict[str, float]:
    """Write `model.safetensors`, `config.json`, `history.jsonl`, `metrics.json` and `plots.json`.

    Returns:
        The last value of every curve, as in `metrics.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.float().contiguous().cpu() for name, value in weights.items()}, folder / "model.safetensors")
    write_json(folder / "config.json", description)
    write_text(folder / "history.jsonl", "".join(json.dumps(point, sort_keys=True) + "\n" for point in history))
    figures: dict[str, float] = {}
    for point in history:
        figures |= point
    write_json(folder / "metrics.json", figures)
    write_json(folder / "plots.json", _plots(history))
    return figures


def _plots(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Points for `dvc plots`, which wants all fields in all points: validations, and the loss before them."""
    points: list[dict[str, float]] = []
    point: dict[str, float] = {}
    validated = any("valid_loss" in row for row in history)
    for row in history:
        if "loss" in row:
            point = {"train_loss": row["loss"]}
        if point and (not validated or "valid_loss" in row):
            valid = {"valid_loss": row["valid_loss"]} if validated else {}
            points.append({"step": row["step"], **point, **valid})
    return points
