"""A listening test as one page, blind and randomised: SMOS, how like the prompt's voice, and CMOS of two systems.

Scales are VALL-E's (arXiv:2301.02111): SMOS from 1 to 5 in half steps, CMOS from -3 to +3 in whole ones. The page knows
its samples by names drawn from a secret; which system each is stands in the key alone, which raters never see. What
becomes of the answers is in `valle2.evaluation.listening_results`.
"""

import hashlib
import hmac
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from valle2.errors import EvaluationError
from valle2.evaluation.evaluation_folder import Evaluation, in_common
from valle2.pages.page import render
from valle2.pages.sounds import Sounds
from valle2.stage import digest

TEMPLATE = "listening.html.j2"
GROUND_TRUTH = "ground truth"
PROMPT = ""
"""Among the names of systems."""
LEVEL = 10 ** (-26 / 20)
"""Root mean square that all sounds are brought to, -26 dBov as ITU-T P.800 asks: louder ones would be liked better."""
PEAK = 0.99


@dataclass(frozen=True)
class ListeningTest:
    """A test that can be given to raters.

    Attributes:
        page: What they get.
        key: What is kept: `test`, `secret`, `systems`, and `trials`, each with its `kind`, `case` and the `stimuli`
            (name to system).
    """

    page: str
    key: dict[str, Any]


def make_test(
    systems: Sequence[Evaluation], *, num_cases: int, with_ground_truth: bool, seed: int, secret: str
) -> ListeningTest:
    """Choose cases, speaker by speaker, and make page and key.

    Args:
        systems: One or two; two are compared as well. Their names must differ.
        num_cases: At most.
        with_ground_truth: The speakers' own readings among what is rated for similarity, as a hidden anchor.
        seed: Of the choice of cases.
        secret: Draws the names in the page; the same secret and samples give the same bytes.

    Raises:
        EvaluationError: No case can be heard, the systems share none, or their names are the same.
    """
    names = [system.name for system in systems] + [GROUND_TRUTH] * with_ground_truth
    if len({name.casefold() for name in names}) < len(names):
        raise EvaluationError(
            f"systems of the same name ({', '.join(names)}); give each its own: --name, --against-name"
        )
    sounds = Sounds("WAV")
    trials: list[dict[str, Any]] = []
    for case in _choose(systems, num_cases, with_ground_truth, seed):
        files = _files(case, systems, with_ground_truth)
        heard = {name: _sound(path, sounds) for name, path in files.items()}
        rated = [("smos", (name,)) for name in names] + [("cmos", tuple(names[:2]))] * (len(systems) == 2)
        for kind, group in rated:
            stimuli = {_name(secret, kind, case["id"], name): name for name in group}
            trials.append(
                {"trial": _name(secret, kind, case["id"], *group), "kind": kind, "case": case["id"],
                 "prompt": heard[PROMPT], "stimuli": stimuli, "sounds": {one: heard[stimuli[one]] for one in stimuli}}
            )  # fmt: skip
    # The order of names drawn from a secret tells nothing.
    trials.sort(key=lambda trial: trial["trial"])
    sounds.texts = dict(sorted(sounds.texts.items()))
    test = digest([_shown(trial) for trial in trials])[:16]
    key = {
        "test": test, "secret": secret, "seed": seed, "systems": names,
        "trials": {trial["trial"]: {part: trial[part] for part in ("kind", "case", "stimuli")} for trial in trials},
    }  # fmt: skip
    about = {"test": test, "trials": [_shown(trial) for trial in trials]}
    return ListeningTest(render(Path(__file__).with_name(TEMPLATE), about=about, sounds=sounds), key)


def _shown(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What the page knows of a trial."""
    return {
        "trial": trial["trial"], "kind": trial["kind"], "prompt": trial["prompt"] if trial["kind"] == "smos" else None,
        "stimuli": [{"id": name, "sound": trial["sounds"][name]} for name in sorted(trial["stimuli"])],
    }  # fmt: skip


def _name(secret: str, *of: str) -> str:
    return hmac.new(secret.encode(), "\n".join(of).encode(), hashlib.sha256).hexdigest()[:12]


def _choose(
    systems: Sequence[Evaluation], num_cases: int, with_ground_truth: bool, seed: int
) -> list[Mapping[str, Any]]:
    """Cases of which everything can be heard, one of each speaker before the second of any."""
    both = set(in_common(systems[0].cases, systems[-1].cases))
    able = [
        case
        for case in systems[0].cases
        if case["id"] in both and all(path.is_file() for path in _files(case, systems, with_ground_truth).values())
    ]
    if not able:
        needed = "prompt, model and ground_truth" if with_ground_truth else "prompt and model"
        raise EvaluationError(
            f"no case can be heard: no WAV of {needed} for any in {systems[0].samples} and {systems[-1].samples}; name "
            "output folders of `valle2 evaluate`"
        )
    random.Random(seed).shuffle(able)
    turns: dict[str, int] = {}
    ranked = []
    for case in able:
        turns[case["speaker"]] = turns.get(case["speaker"], 0) + 1
        ranked.append((turns[case["speaker"]], case))
    return [case for _, case in sorted(ranked, key=lambda item: item[0])[:num_cases]]


def _files(case: Mapping[str, Any], systems: Sequence[Evaluation], with_ground_truth: bool) -> dict[str, Path]:
    files = {system.name: system.samples / f"{case['id']}.model.wav" for system in systems}
    files[PROMPT] = systems[0].samples / f"{case['id']}.prompt.wav"
    if with_ground_truth:
        files[GROUND_TRUTH] = systems[0].samples / f"{case['id']}.ground_truth.wav"
    return files


def _sound(path: Path, sounds: Sounds) -> str:
    wave, rate = soundfile.read(path, dtype="float32")
    return sounds.add(levelled(wave), rate)


def levelled(wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Speech at `LEVEL`, or a little softer where it would be clipped; silence stays silence."""
    level, peak = float(np.sqrt(np.mean(np.square(wave)))) if len(wave) else 0.0, float(np.abs(wave).max(initial=0))
    return wave * np.float32(min(LEVEL / level, PEAK / peak)) if level > 0 else wave
