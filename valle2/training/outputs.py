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
    write_json(folder / "plots.json", history)
    return figures
