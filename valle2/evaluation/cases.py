"""Which sentences are synthesised, and with which prompts (VALL-E 2, arXiv:2406.05370, section 4.1.2).

A case is a sentence of an unseen speaker and a prompt from another utterance of the same speaker: its first seconds, up
to the end of a word, so that the prompt's text is exactly what it says. Where no utterance is that long, several whole
ones follow one another. How cases are scored is in `valle2.evaluation.evaluate`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16
from lhotse.cut import Cut

from valle2.config.evaluate import EvaluateConfig
from valle2.errors import EvaluationError
from valle2.shards import load_codes, read_cuts, read_shards
from valle2.text import normalise
from valle2.types import Seconds

WORD_SLACK = 0.02
"""Seconds kept after the prompt's last word: one frame of the aligner."""


@dataclass(frozen=True)
class Prompt:
    """Enrolled speech that ends with a word, and what it says."""

    cut_ids: tuple[str, ...]
    text: str
    wave: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Case:
    """A sentence to say in a voice."""

    id: str
    speaker: str
    text: str
    prompt: Prompt
    reference: Float[np.ndarray, " n"]
    """The speaker's own reading of the text."""
    codes: Int16[np.ndarray, "k t"]
    """The codec's codes of the reference."""


def choose_cases(shards: Path, settings: EvaluateConfig, language: str) -> list[Case]:
    """Draw cases evenly over the test split's speakers, the same ones each time.

    Args:
        shards: A tokenize output.
        settings: How many, and how long.
        language: ISO 639-1 code of the texts.

    Raises:
        EvaluationError: A test speaker is also in train, or no speaker has both a prompt and a sentence to say.
    """
    speakers: dict[str, list[Cut]] = {}
    for cut in read_shards(shards, "test"):
        speakers.setdefault(cut.supervisions[0].speaker, []).append(cut)
    assert_unseen(shards, set(speakers))
    queues = [_pairs(sorted(cuts, key=lambda cut: cut.id), settings, language) for _, cuts in sorted(speakers.items())]
    # Round by round, one sentence a speaker, so that every speaker has the same number or one fewer.
    rounds = max((len(queue) for queue in queues), default=0)
    order = [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)]
    if not order:
        raise EvaluationError(
            f"no case: {len(speakers)} unseen speakers, none with one utterance of {settings.min_target_seconds}-"
            f"{settings.max_target_seconds} s and another as prompt; widen `evaluate.min_target_seconds` and "
            "`max_target_seconds`, or name more `curate.test_speakers`"
        )
    return [_case(target, prompt, settings.prompt_seconds, language) for target, prompt in order[: settings.num_cases]]


def assert_unseen(shards: Path, speakers: set[str]) -> None:
    """No test speaker may be heard in training.

    Raises:
        EvaluationError: One is.
    """
    for row in read_cuts(shards, "train"):
        heard = {supervision["speaker"] for supervision in row["supervisions"]} & speakers
        if heard:
            raise EvaluationError(
                f"speaker {min(heard)} is in the test and the train split (cut {row['id']} of {shards}); figures would "
                "flatter: run `valle2 curate` and `valle2 tokenize` again"
            )


def cut_prompt(cut: Cut, seconds: Seconds, language: str) -> tuple[str, Seconds]:
    """Where a prompt of at most `seconds` ends, at a word's end, and its text up to there.

    Returns:
        Text and end; an empty text if not even one word fits.
    """
    words = (cut.supervisions[0].alignment or {}).get("word", [])
    fitting = [word for word in words if word.end <= seconds]
    if cut.duration <= seconds:
        return cut.supervisions[0].text, cut.duration
    if not fitting:
        return "", 0.0
    text = normalise(" ".join(word.symbol for word in fitting), language)
    return text, min(fitting[-1].end + WORD_SLACK, seconds)


def choose_prompt(others: list[Cut], seconds: Seconds) -> list[Cut]:
    """The first utterance that is long enough, else as many as fit, in their order.

    Args:
        others: Utterances to choose from, of one speaker.
        seconds: Length of a prompt.

    Returns:
        None only where there are no others.
    """
    enough = [cut for cut in others if cut.duration >= seconds]
    if enough:
        return enough[:1]
    chosen: list[Cut] = []
    for cut in others:
        if sum(one.duration for one in chosen) + cut.duration <= seconds:
            chosen.append(cut)
    return chosen


def _pairs(cuts: list[Cut], settings: EvaluateConfig, language: str) -> list[tuple[Cut, list[Cut]]]:
    """Targets of one speaker, each with its prompt from the utterances after it."""
    targets = [cut for cut in cuts if settings.min_target_seconds <= cut.duration <= settings.max_target_seconds]
    able = [cut for cut in cuts if cut_prompt(cut, settings.prompt_seconds, language)[0]]
    pairs = []
    for target in targets:
        place = cuts.index(target)
        others = [
            cut for cut in able if cut.id != target.id and cut.supervisions[0].text != target.supervisions[0].text
        ]
        # Cyclic order from the target on: every prompt gets its turn.
        others.sort(key=lambda cut: (cuts.index(cut) - place) % len(cuts))
        if others:
            pairs.append((target, choose_prompt(others, settings.prompt_seconds)))
    return pairs


def _case(target: Cut, sources: list[Cut], prompt_seconds: Seconds, language: str) -> Case:
    said = [(cut, *cut_prompt(cut, prompt_seconds, language)) for cut in sources]
    waves = [cut.load_audio()[0][: round(end * cut.sampling_rate)] for cut, _, end in said]
    prompt = Prompt(
        tuple(cut.id for cut in sources),
        " ".join(text for _, text, _ in said),
        np.concatenate(waves).astype(np.float32),
    )
    supervision = target.supervisions[0]
    reference = target.load_audio()[0].astype(np.float32)
    return Case(target.id, supervision.speaker, supervision.text, prompt, reference, load_codes(target))
