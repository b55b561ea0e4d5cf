"""What `valle2 evaluate` leaves behind, read back: figures, cases, samples to hear, and what earlier stages tell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle2.errors import EvaluationError


@dataclass(frozen=True)
class Evaluation:
    """An evaluated system.

    Attributes:
        metrics: As in `metrics.json`.
        cases: As in `cases.json`.
        samples: Folder with `<case>.<row>.wav`; what is not there cannot be heard.
        context: `history` (kind -> points of the training) and `funnel` (content of `funnel.json`, or None).
        name: For people.
    """

    metrics: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    samples: Path
    context: Mapping[str, Any] = field(default_factory=dict)
    name: str = "VALL-E 2"


def read_evaluation(folder: Path, name: str = "VALL-E 2") -> Evaluation:
    """Read an output folder of the evaluate stage.

    Args:
        folder: Such as `artifacts/evaluate`: it holds `metrics.json` and `cases.json`, and, to be heard and seen,
            `samples/` and `context.json`.
        name: What the system is called.

    Raises:
        EvaluationError: It is not there, or holds no cases.
    """
    if not folder.is_dir():
        raise EvaluationError(f"no folder {folder}; name the output of `valle2 evaluate`, such as artifacts/evaluate")
    metrics, cases = (_read(folder / name) for name in ("metrics.json", "cases.json"))
    if not isinstance(metrics, dict) or not isinstance(cases, list) or not all(map(_is_case, cases)):
        raise EvaluationError(f"{folder} has files that `valle2 evaluate` did not write; run it again")
    if not cases:
        raise EvaluationError(
            f"no case in {folder / 'cases.json'}; run `valle2 evaluate` with a protocol that has some"
        )
    context = _read(folder / "context.json") if (folder / "context.json").is_file() else {}
    return Evaluation(metrics, cases, folder / "samples", context, name)


def in_common(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the cases that two evaluations share: the same text, prompt and seed.

    Raises:
        EvaluationError: There is none.
    """
    asked = {case["id"]: _asked(case) for case in other}
    both = [case["id"] for case in one if asked.get(case["id"]) == _asked(case)]
    if not both:
        raise EvaluationError(
            f"the two evaluations share no case of the same text, prompt and seed: {len(one)} and {len(other)} cases; "
            "evaluate both by the same protocols and seed"
        )
    return both


def _asked(case: Mapping[str, Any]) -> list[Any]:
    return [case["text"], list(case["prompt_ids"]), case["seed"]]


def _is_case(case: Any) -> bool:
    return isinstance(case, dict) and "id" in case and "model" in case.get("rows", {})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise EvaluationError(f"no {path.name} in {path.parent}; name an output folder of `valle2 evaluate`")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({error}); run `valle2 evaluate` again") from error
