"""Starting from an earlier voice model's weights, and refusing one that does not fit."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from valle2.errors import TrainingError
from valle2.stage import file_sha256
from valle2.training.objective import Objective


def warm_start(model: nn.Module, bundle: Path, objective: Objective, codes_digest: str, bpe: Path) -> dict[str, str]:
    """Copy a voice model's weights; the optimiser and the schedule begin anew.

    Args:
        model: What to start.
        bundle: Folder of the voice model.
        objective: Which of its two models, and of which shape.
        codes_digest: Digest of the encoder and the codebooks that the training codes are from.
        bpe: Tokenizer of the training text.

    Returns:
        The parent for records: its folder and the digest of the weights taken.

    Raises:
        TrainingError: There is no such model, or it differs; the message names every difference.
    """
    field = f"train_{objective.kind}.warm_start"
    if not (bundle / "model.json").is_file():
        raise TrainingError(f"`{field}` names {bundle}, which holds no voice model (no model.json); leave it empty to "
                            "train from scratch")  # fmt: skip
    differences = _differences(json.loads((bundle / "model.json").read_text()), objective, codes_digest)
    if (bundle / "bpe.json").read_text() != bpe.read_text():
        differences.append(_vocabulary_difference(bundle / "bpe.json", bpe))
    if differences:
        raise TrainingError(
            f"`{field}` names {bundle}, which does not fit: {'; '.join(differences)}; change these parameters back, "
            f'or set {field} to "" to train from scratch'
        )
    weights = bundle / f"{objective.kind}.safetensors"
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return {"folder": bundle.as_posix(), "file": weights.name, "sha256": file_sha256(weights)}


def _differences(theirs: dict[str, Any], objective: Objective, codes_digest: str) -> list[str]:
    """Every way in which the bundle is another model."""
    found = []
    # Dropout is how a model is trained, not what it is.
    for name, value in objective.shape.model_dump(exclude={"dropout"}).items():
        found.append((f"model.{objective.kind}.{name}", theirs[objective.kind][name], value))
    if objective.kind == "ar":
        found.append(("model.group_size", theirs["group_size"], objective.group_size))
    else:
        found.append(("number of codebooks", theirs["num_codebooks"], objective.num_codebooks))
    found.append(("codec's codes digest", theirs["codec"].get("codes_digest", "unknown")[:12], codes_digest[:12]))
    return [f"{name} is {its} there and {ours} here" for name, its, ours in found if its != ours]


def _vocabulary_difference(theirs: Path, ours: Path) -> str:
    sizes = [json.loads(path.read_text())["model"]["vocab"] for path in (theirs, ours)]
    only_there = sorted(set(sizes[0]) - set(sizes[1]))[:3]
    only_here = sorted(set(sizes[1]) - set(sizes[0]))[:3]
    return (
        f"the text vocabulary is another one: {len(sizes[0])} entries there and {len(sizes[1])} here, only there "
        f"{only_there}, only here {only_here}"
    )
