"""A workspace as the stages before evaluation leave it, made in a second: real shards, tiny random models."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from valle2.codec import Architecture, build_encodec, save_encodec
from valle2.config.params import Config, parse_config
from valle2.config.sampling import SamplingConfig
from valle2.corpus.tokenize import tokenize
from valle2.model_folder import write_bundle
from valle2.shards import read_manifest
from valle2.stage import output, write_json
from valle2.text import train_bpe
from valle2.training.objective import AR, NAR, CodecFacts, describe
from valle2.training.outputs import write_outputs

RATE = 24_000
TEXTS = ("the red boat", "a small garden", "peter sees a horse", "two old birds", "the quiet river", "an empty house")
SPEAKERS = {"train": ("ann", "bob"), "dev": ("cid",), "test": ("dee", "eve")}
TINY = {
    "num_layers": 2, "dim": 32, "num_heads": 2, "ffn_dim": 64, "dropout": 0.0, "max_text_tokens": 128, "max_frames": 900
}  # fmt: skip
TEN_STEPS = {
    "num_steps": 10,
    "batch_frames": 300,
    "warmup_steps": 2,
    "bf16": False,
    "validate_every": 5,
    "log_every": 2,
}
CONSENT = {"basis": "consent", "record": "forms/1.pdf", "granted_by": "the speaker", "scope": ["training"]}


def config() -> Config:
    """Small and quick."""
    return parse_config(
        {
            "runtime": {"num_threads": 1},
            "tokenize": {"codec": "codec", "part_seconds": 4, "shard_mb": 0.001},
            "model": {"group_size": 2, "ar": TINY, "nar": TINY},
            **dict.fromkeys(("train_ar", "train_nar"), TEN_STEPS),
            "evaluate": {"num_cases": 4, "sampling": {"max_seconds": 0.5}, "prompt_seconds": 1.0},
        }
    )


def voice(speaker: str, seconds: float) -> np.ndarray:
    """A buzz whose pitch and colour are the speaker's."""
    rng = np.random.default_rng(list(speaker.encode()))
    time, pitch = np.arange(round(seconds * RATE)) / RATE, rng.uniform(90, 220)
    waves = [np.sin(2 * np.pi * pitch * n * time) * rng.uniform(0.2, 1) / n for n in range(1, 12)]
    return (0.2 * np.sum(waves, axis=0) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def corpus() -> None:
    """The outputs of ingest, transcribe and curate, in the working folder."""
    ingested, segments, curated = [], [], {split: [] for split in SPEAKERS}
    for split, speakers in SPEAKERS.items():
        for speaker in speakers:
            path = Path("data") / f"{speaker}.wav"
            path.parent.mkdir(exist_ok=True)
            seconds = 1.5
            wave = np.concatenate([voice(speaker, seconds + 0.1 * index) for index in range(4)])
            soundfile.write(path, wave, RATE)
            recording = Recording.from_file(path, recording_id=speaker)
            custom = {
                "source": "made up", "licence": "CC0-1.0", "attribution": "nobody", "consent": CONSENT,
                "sha256": speaker * 21,
            }  # fmt: skip
            whole = SupervisionSegment(speaker, speaker, 0, recording.duration, speaker=speaker, language="en")
            ingested.append(MonoCut(speaker, 0, recording.duration, 0, [whole], None, recording, custom))
            start = 0.0
            for index in range(4):
                name, text = f"{speaker}-{index:03d}", TEXTS[(index + ord(speaker[0])) % len(TEXTS)]
                length = seconds + 0.1 * index
                share = length / len(text.split())
                words = [AlignmentItem(word, n * share, share * 0.9) for n, word in enumerate(text.split())]
                said = SupervisionSegment(
                    name, name, 0, length, text=text, speaker=speaker, language="en", alignment={"word": words}
                )
                cut = MonoCut(name, start, length, 0, [said], None, recording, custom)
                segments.append(cut)
                curated[split].append(cut)
                start += length
    _lines(output("ingest") / "cuts.jsonl", ingested)
    _lines(output("transcribe") / "segments.jsonl", segments)
    for split, cuts in curated.items():
        _lines(output("curate") / f"{split}.jsonl", cuts)
    train_bpe(TEXTS, 64).save(output("curate") / "bpe.json")
    part = {"count": 4, "samples": 4, "hours": 0.5}
    write_json(
        output("curate") / "funnel.json",
        {"sample_rate": RATE, "in": part, "dropped": {"too_short": part}, "kept": {"train": part}},
    )


def models(settings: Config) -> None:
    """A codec, shards of its codes, and the outputs of both trainings, all with random weights."""
    torch.manual_seed(0)
    shape = Architecture(encoder_filters=2, decoder_filters=2, dimension=16, num_residual_layers=1)
    save_encodec(build_encodec(shape), shape, Path("codec"))
    tokenize(settings)
    codec = CodecFacts.of(read_manifest(output("tokenize")))
    for stage, objective in (("train-ar", AR(settings, codec)), ("train-nar", NAR(settings, codec))):
        model = objective.build(64)
        history = [{"step": step, "loss": 5 - step / 10, "valid_loss": 5 - step / 20} for step in (1, 2, 3)]
        write_outputs(Path("artifacts") / stage, model.state_dict(), describe(objective, codec, 64), history)


def workspace(folder: Path) -> Config:
    """All of it in `folder`, which must be the working folder."""
    assert Path.cwd() == folder
    settings = config()
    corpus()
    bpe = json.loads((output("curate") / "bpe.json").read_text())
    assert len(bpe["model"]["vocab"]) <= 64
    models(settings)
    return settings


def voice_model(folder: Path, sampling: SamplingConfig = SamplingConfig(max_seconds=0.5)) -> Path:
    """The voice model of the outputs in the working folder."""
    write_bundle(
        folder, ar_dir=output("train-ar"), nar_dir=output("train-nar"), bpe=output("curate") / "bpe.json",
        codec_name="codec", decoder="codec", sampling=sampling,
    )  # fmt: skip
    return folder


def _lines(path: Path, cuts: list[MonoCut]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))
