"""Small versions of data, through the real data stages but for the recogniser: what it would say is written by hand."""

from pathlib import Path

import torch

from tests.corpora import config, declare_speakers, rows, segment, tone, write_audio, write_rows
from valle2.codec import Architecture, build_encodec, save_encodec
from valle2.config.params import Config
from valle2.corpus.curate import curate
from valle2.corpus.data_report import data_report
from valle2.corpus.ingest import ingest
from valle2.corpus.tokenize import tokenize

SPEAKERS = ("ann", "bob", "cal", "dan")
TEXTS = ("The red boat.", "A small garden.", "Two old birds.", "Peter sees {}.")
LENGTH, SEGMENT, SPEECH = 8.0, 1.75, 7.0
"""s of a recording, of each of its four segments, and where its silence begins."""


def parameters(**curate: object) -> Config:
    """One thread, a codec of a few filters, Ann for test and Bob for dev."""
    chosen = {
        "min_dnsmos": 1.0, "test_speakers": ["ann"], "dev_speakers": ["bob"], "vocab_size": 40, "max_bit_error": 0,
        "words_per_second_iqr": 50, **curate,
    }  # fmt: skip
    return config(curate=chosen, tokenize={"codec": "codec"})


def record(folder: Path, speaker: str, name: str = "a") -> Path:
    """A recording of a speaker's own tone."""
    pitch = 150.0 + 29 * (ord(speaker[0]) - ord("a")) + 11 * (ord(name) - ord("a"))
    return write_audio(folder / "data" / "audio" / speaker / f"{name}.wav", tone(LENGTH, pitch))


def take_in(folder: Path) -> None:
    """Declared sources with one recording a speaker, a file that is no audio, and a codec."""
    declare_speakers(folder, (*SPEAKERS, "eve"))
    for speaker in SPEAKERS:
        record(folder, speaker)
    (folder / "data" / "audio" / "ann" / "broken.wav").write_text("no audio")
    torch.manual_seed(0)
    shape = Architecture(encoder_filters=2, decoder_filters=2, dimension=16, num_residual_layers=1)
    save_encodec(build_encodec(shape), shape, folder / "codec")


def run_data_stages(settings: Config) -> None:
    """All of them in the working folder."""
    ingest(settings)
    _transcribe()
    curate(settings)
    tokenize(settings)
    data_report(settings)


def _transcribe() -> None:
    """Four segments a recording, the last in German where Dan speaks, and a second that is no speech."""
    cuts, dropped = [], []
    for row in rows("artifacts/ingest/cuts.jsonl"):
        speaker, path = row["supervisions"][0]["speaker"], Path(row["recording"]["sources"][0]["source"])
        for index, text in enumerate(TEXTS):
            said = f"{text.format(speaker)} {speaker} {row['id'][-1]}"
            cut = segment(f"{row['id']}-00{index}", speaker, said, path, SEGMENT * index, SEGMENT).to_dict()
            cut["custom"] = {**row["custom"], "asr_text": said.lower().replace("two", "too"), "heard_language": "en"}
            cut["custom"]["heard_language_probability"] = 0.9
            cut["recording"]["id"] = row["id"]
            if speaker == "dan" and index == 3:
                cut["supervisions"][0]["language"] = "de"
            cuts.append(cut)
        samples = round((LENGTH - SPEECH) * 24_000)
        span = {"start": SPEECH, "end": LENGTH, "samples": samples, "reason": "non_speech"}
        dropped.append({"recording": row["id"], **span})
    write_rows("artifacts/transcribe/segments.jsonl", cuts)
    write_rows("artifacts/transcribe/dropped.jsonl", dropped)
