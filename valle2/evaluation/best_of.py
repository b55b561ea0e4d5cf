"""Several readings of one text, and the best of them (VALL-E 2, arXiv:2406.05370, section 4.1.3, five-time sampling).

The recogniser and the speaker encoder that choose must be named beside any figure of what was chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
from torch import Tensor

from valle2.asr import ASR_RATE, Asr
from valle2.audio import change_rate
from valle2.config.sampling import SamplingConfig
from valle2.errors import ConfigError
from valle2.evaluation.metrics import SpeakerEncoder, word_errors
from valle2.synthesis import Request, Synthesis, Synthesizer

SIM_CEILING = 0.3
"""Similarity above which readings count as equally similar (4.1.3)."""
SHORTEST = 0.3
"""Seconds of audio that the judges' models take."""
SEED_STRIDE = 1_000_003
"""Between the seeds of a text's readings; the first reading is the one that there would be without a choice."""

Choice = Literal["sort", "sim", "wer"]


class Judged(Protocol):
    """What is chosen by: similarity (cosine) to the prompt, and word error rate."""

    @property
    def sim(self) -> float: ...

    @property
    def wer(self) -> float: ...


AnyJudged = TypeVar("AnyJudged", bound=Judged)


@dataclass(frozen=True)
class Reading:
    """One of the readings of a text.

    Attributes:
        synthesis: What was spoken.
        seed: That made it.
        sim: Similarity (cosine) to the prompt.
        wer: Word error rate.
    """

    synthesis: Synthesis
    seed: int
    sim: float
    wer: float


@dataclass(frozen=True)
class Judges:
    """What readings are judged by."""

    asr: Asr
    encoder: SpeakerEncoder
    language: str = "en"


def read_often(
    synthesizer: Synthesizer,
    requests: Sequence[Request],
    num_readings: int,
    judges: Judges,
    sampling: SamplingConfig | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> list[list[Reading]]:
    """Speak each request several times, all in one batch, and judge every reading.

    Args:
        synthesizer: Who speaks.
        requests: What to say and how.
        num_readings: Of each request, N.
        judges: Recogniser and speaker encoder.
        sampling: Settings; by default those that the model was evaluated with.
        on_frames: As for `Synthesizer.synthesize_batch`.

    Raises:
        ConfigError: Greedy sampling was asked for, which reads everything the same way each time.
    """
    if (
        num_readings > 1
        and (sampling or synthesizer.sampling).top_p == 0
        and not (sampling or synthesizer.sampling).ras_window
    ):
        raise ConfigError("every greedy reading is the same; with --best-of give a --top-p above 0")
    every = [
        replace(request, seed=request.seed + SEED_STRIDE * turn) for request in requests for turn in range(num_readings)
    ]
    spoken = synthesizer.synthesize_batch(every, sampling, on_frames)
    prompts = [judges.encoder.embed(_for_judges(request.prompt, synthesizer.sample_rate)) for request in requests]
    readings = []
    for place, (request, item) in enumerate(zip(every, spoken, strict=True)):
        speech = _for_judges(item.waveform, synthesizer.sample_rate)
        sim = float(judges.encoder.embed(speech) @ prompts[place // num_readings])
        errors = word_errors(request.text, judges.asr.recognise(speech), judges.language)
        readings.append(Reading(item, request.seed, sim, errors.rate))
    return [readings[start : start + num_readings] for start in range(0, len(readings), num_readings)]


def choose(readings: Sequence[AnyJudged], by: Choice = "sort") -> AnyJudged:
    """The best reading; of equal ones the first.

    Args:
        readings: Of one text.
        by: `sort` is the paper's: the highest (min(SIM, 0.3), 1 - WER), compared in this order. `sim` and `wer` are its
            metric-wise choices, the best for one figure alone: an oracle of that figure, not a way to speak.
    """
    match by:
        case "sort":
            return max(readings, key=lambda reading: (min(reading.sim, SIM_CEILING), 1 - reading.wer))
        case "sim":
            return max(readings, key=lambda reading: reading.sim)
        case "wer":
            return min(readings, key=lambda reading: reading.wer)


def _for_judges(waveform: Tensor, sample_rate: int) -> np.ndarray:
    wave = waveform.cpu().numpy()
    wave = np.pad(wave, (0, max(0, round(SHORTEST * sample_rate) - len(wave))))
    return change_rate(wave, sample_rate, ASR_RATE)
