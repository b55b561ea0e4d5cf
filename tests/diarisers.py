"""Pipelines of pyannote.audio for voices that give themselves away, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from pyannote.audio import Model, Pipeline
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment
from torch import Tensor
from torch.nn import functional as F

from demo.corpus import SAMPLE_RATE, make_voice, record
from demo.grammar import sentence

TONES = (6800.0, 7400.0)
"""Hz; each voice's microphone hums, while it is on, above what says who speaks and what."""
_HOP = 160
_LOUD = 0.004
"""Level above which a hum is heard."""


class HummingMicrophones(Pipeline):
    """Who speaks when, by the hum of each one's microphone; labels are given as voices are first heard."""

    def __init__(
        self, tones: Sequence[float] = TONES, embeddings: bool = True, token: str | None = None, cache_dir: Any = None
    ) -> None:
        super().__init__()
        self._tones = list(tones)
        self._embeddings = embeddings

    def apply(self, file: Any) -> DiarizeOutput:
        samples = np.asarray(file["waveform"][0])
        heard = [
            (start, end, tone) for tone in range(len(self._tones)) for start, end in self._turns(file, samples, tone)
        ]
        order = list(dict.fromkeys(tone for _, _, tone in sorted(heard)))
        found = Annotation(uri=file["uri"])
        for start, end, tone in heard:
            found[Segment(start, end), tone] = f"SPEAKER_{order.index(tone):02d}"
        rows = np.eye(len(self._tones))[order] * 3.0 + 0.1
        return DiarizeOutput(found, found, rows if self._embeddings else None)

    def _turns(self, file: Any, samples: np.ndarray, tone: int) -> list[tuple[float, float]]:
        rate = file["sample_rate"]
        carrier = samples * np.exp(-2j * np.pi * self._tones[tone] * np.arange(len(samples)) / rate)
        frames = carrier[: len(carrier) // _HOP * _HOP].reshape(-1, _HOP).mean(1)
        level = np.abs(np.convolve(frames, np.ones(5) / 5, "same"))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], level > _LOUD, [0]]).astype(int)))
        return [(start * _HOP / rate, end * _HOP / rate) for start, end in edges.reshape(-1, 2) if end - start > 10]


def write_pipeline(folder: Path, **params: Any) -> str:
    """A folder that `Pipeline.from_pretrained` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = {"name": "tests.diarisers.HummingMicrophones", "params": params}
    (folder / "config.yaml").write_text(yaml.safe_dump({"version": "3.1.0", "pipeline": pipeline}))
    return folder.as_posix()


class _Hums(Model):
    """How loud each hum is, each 10 ms; a model of pyannote's in form."""

    def __init__(self, sample_rate: int = 16_000, num_channels: int = 1, task: Any = None) -> None:
        super().__init__(sample_rate=sample_rate, num_channels=num_channels, task=task)
        phases = 2 * np.pi * np.outer(TONES, np.arange(_HOP)) / sample_rate
        waves = np.stack([np.cos(phases), np.sin(phases)], 1).reshape(4, 1, _HOP)
        self.register_buffer("waves", torch.tensor(waves / _HOP, dtype=torch.float32))

    def levels(self, waveforms: Tensor) -> Tensor:
        """[B, 1, N] to [B, T, 2]."""
        found = F.conv1d(waveforms, self.waves, stride=_HOP).unflatten(1, (2, 2)).norm(dim=2)
        return F.avg_pool1d(found, 5, 1, 2, count_include_pad=False).transpose(1, 2)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // _HOP

    def receptive_field_size(self, num_frames: int = 1) -> int:
        return num_frames * _HOP

    def receptive_field_center(self, frame: int = 0) -> int:
        return frame * _HOP + _HOP // 2


class HumSegmentation(_Hums):
    """Log-probabilities of nobody, the first, the second, both."""

    def forward(self, waveforms: Tensor) -> Tensor:
        first, second = (self.levels(waveforms) > _LOUD).long().unbind(-1)
        return F.one_hot(first + 2 * second, 4).float().clamp(min=1e-6).log()


class HumEmbedding(_Hums):
    """The mean level of each hum, where `weights` says."""

    dimension = 2

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        levels = self.levels(waveforms)
        if weights is None:
            return levels.mean(1)
        mask = F.interpolate(weights[:, None], levels.shape[1]).transpose(1, 2)
        return (levels * mask).sum(1) / mask.sum(1).clamp(min=1)


def write_diarisation(folder: Path) -> str:
    """A folder as the published pipelines are: pyannote's own SpeakerDiarization, with checkpoints of these models."""
    powerset = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION, resolution=Resolution.FRAME, duration=4.0,
        classes=["first", "second"], powerset_max_classes=2, permutation_invariant=True,
    )  # fmt: skip
    plain = Specifications(problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=4.0)
    for name, model, about in (
        ("segmentation", HumSegmentation(), powerset),
        ("embedding", HumEmbedding(), plain),
    ):
        model.specifications = about
        trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.strategy.connect(model)
        (folder / name).mkdir(parents=True)
        trainer.save_checkpoint(folder / name / "pytorch_model.bin")
    (folder / "plda").mkdir()
    np.savez(folder / "plda/xvec_transform.npz", mean1=np.zeros(2), mean2=np.zeros(2), lda=np.eye(2))
    np.savez(folder / "plda/plda.npz", mu=np.zeros(2), tr=np.eye(2), psi=np.ones(2))
    parts = {name: f"$model/{name}" for name in ("segmentation", "embedding", "plda")}
    content = {
        "pipeline": {
            "name": "pyannote.audio.pipelines.SpeakerDiarization",
            "params": {"clustering": "AgglomerativeClustering", "embedding_exclude_overlap": True, **parts},
        },
        "params": {
            "clustering": {"method": "centroid", "min_cluster_size": 1, "threshold": 0.7},
            "segmentation": {"min_duration_off": 0.0},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder.as_posix()


@dataclass(frozen=True)
class Talk:
    """What was said and by whom."""

    samples: np.ndarray
    words: list[tuple[str, float, float, int]]
    """Word, start and end (s) and voice, by time."""
    turns: list[tuple[float, float, int]]
    """Start and end (s) and voice, by time."""


def talk(turns: Sequence[tuple[int, float]], seed: int = 0, hum: bool = True) -> Talk:
    """Sentences of two voices of the demo.

    Args:
        turns: Voice of each sentence, and the pause (s) before it; one that is negative begins before the last is over.
        seed: Of what is said.
        hum: The microphones do.
    """
    rng, draw = Random(seed), np.random.default_rng(seed)
    wave = np.zeros(SAMPLE_RATE // 2)
    words: list[tuple[str, float, float, int]] = []
    times: list[tuple[float, float, int]] = []
    end = len(wave)
    for number, pause in turns:
        spoken = record(make_voice((3, 4)[number]), [sentence(rng)], draw)
        ((_, first, last),) = spoken.sentences
        own = spoken.samples[first:last] / 32768
        if hum:
            own = own + 0.02 * np.sin(2 * np.pi * TONES[number] * np.arange(len(own)) / SAMPLE_RATE)
        start = end + round(pause * SAMPLE_RATE)
        wave = np.concatenate([wave, np.zeros(max(start + len(own) - len(wave), 0))])
        wave[start : start + len(own)] += own
        shift = start - first
        words += [
            (word.text, (word.start + shift) / SAMPLE_RATE, (word.end + shift) / SAMPLE_RATE, number)
            for word in spoken.words
        ]
        times.append((start / SAMPLE_RATE, (start + len(own)) / SAMPLE_RATE, number))
        end = len(wave)
    wave = np.concatenate([wave, np.zeros(SAMPLE_RATE // 2)]) + draw.normal(0, 0.0005, len(wave) + SAMPLE_RATE // 2)
    samples = np.clip(wave * 32768, -32768, 32767).astype(np.int16)
    return Talk(samples, sorted(words, key=lambda word: word[1]), times)
