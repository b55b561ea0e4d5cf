"""Who speaks when, with a pipeline of pyannote.audio.

The weights of the published pipelines are gated: who has accepted their conditions fetches them with HF_TOKEN, or names
a folder that holds them. What becomes of the turns is in `valle2.corpus.turns`.
"""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float

from valle2.asr import ASR_RATE, first_line, quiet, unreported
from valle2.errors import ConfigError
from valle2.types import Seconds

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Turn:
    """A time in which somebody speaks; others may speak too."""

    start: Seconds
    end: Seconds
    voice: str
    """A name that means something within one waveform alone."""


@dataclass(frozen=True)
class Diarised:
    """Who speaks when in a waveform."""

    turns: tuple[Turn, ...]
    """By time."""
    voices: tuple[tuple[str, tuple[float, ...]], ...]
    """Each voice and its embedding, of unit length, as they are first heard; the embedding is empty where the pipeline
    gives none."""


class Diariser:
    """A loaded pipeline; call it with a waveform."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __call__(self, waveform: Float[np.ndarray, " n"]) -> Diarised:
        """Find turns.

        Args:
            waveform: Mono at `ASR_RATE`; all of it is in memory at once.
        """
        samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None]
        with quiet():
            found = self._pipeline({"waveform": samples, "sample_rate": ASR_RATE, "uri": "waveform"})
        annotation = getattr(found, "speaker_diarization", found)
        turns = tuple(
            Turn(round(float(segment.start), 3), round(float(segment.end), 3), str(label))
            for segment, _, label in annotation.itertracks(yield_label=True)
        )
        embeddings = getattr(found, "speaker_embeddings", None)
        labels = [str(label) for label in annotation.labels()]
        rows = [()] * len(labels) if embeddings is None else [tuple(_direction(row)) for row in embeddings]
        known = dict(zip(labels, rows, strict=True))
        return Diarised(turns, tuple((voice, known[voice]) for voice in dict.fromkeys(turn.voice for turn in turns)))


def _direction(embedding: Float[np.ndarray, " d"]) -> list[float]:
    """Of unit length, in few digits; nothing if it is of no use."""
    length = float(np.linalg.norm(embedding))
    return [round(float(value) / length, 6) for value in embedding] if 0 < length < float("inf") else []


def load_diariser(name: str, device: str) -> Diariser:
    """Load a pipeline.

    Args:
        name: Of a pipeline on the model hub, or a folder with its `config.yaml`, or that file.
        device: torch device.

    Raises:
        ConfigError: There is none, or its weights cannot be had.
    """
    path = Path(name)
    is_there = (path / "config.yaml").is_file() if path.is_dir() else path.exists() or _HUB_NAME.fullmatch(name)
    if not is_there:
        found = "a folder without config.yaml" if path.is_dir() else "which is not there"
        raise ConfigError(
            f"`transcribe.diarisation` names {name}, {found}; expected a folder with a pipeline of pyannote.audio, or "
            "the name of one on the model hub"
        )
    # Weights unpack, classes are imported and parameters passed as a file says that is the user's.
    wrong = (OSError, ValueError, RuntimeError, LookupError, ImportError, AttributeError, TypeError, yaml.YAMLError)
    with quiet(), redirect_stdout(StringIO()):  # it explains at length what one sentence says
        unreported()
        from pyannote.audio import Pipeline

        try:
            pipeline = Pipeline.from_pretrained(name)
            if pipeline is None:
                raise ConfigError(_unloadable(name, "nothing there"))
            diariser = Diariser(pipeline.to(torch.device(device)))
            diariser(np.zeros(ASR_RATE, np.float32))  # what is missing may show only now
        except wrong as error:
            raise ConfigError(_unloadable(name, first_line(error))) from error
    return diariser


def _unloadable(name: str, why: str) -> str:
    if Path(name).exists():
        return (
            f"the pyannote pipeline in {name} (`transcribe.diarisation`) cannot be loaded ({why}); expected its "
            "config.yaml and the weights that this names"
        )
    return (
        f"the pyannote pipeline {name} (`transcribe.diarisation`) cannot be had ({why}); accept its conditions on the "
        'model hub and set HF_TOKEN, name a folder that holds its config.yaml and weights, or set it to "" to take one '
        "speaker a file"
    )
