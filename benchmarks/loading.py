"""How long steps wait for data, what of batches is padding, and what an epoch costs to plan.

Lengths are drawn as LibriSpeech's train sets have them. Shards are read from a local folder and from an S3 server on
loopback (`tests.swift`), window by window. The step is the AR model's of the size asked for, on CPU.
"""

import argparse
import json
import os
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import torch

from benchmarks.report import Figure, main
from tests.swift import KEY, SECRET, Swift
from valle2.config.model import TransformerConfig
from valle2.config.params import parse_config
from valle2.config.train import TrainConfig, TrainParams
from valle2.corpus.tokenizer import _add, _npy_bytes
from valle2.stage import file_sha256, output, write_json
from valle2.text import Bpe, train_bpe
from valle2.training.data import Corpus, collate, padding_share
from valle2.training.distributed import Ranks, Shared
from valle2.training.index import ArrayWriter, IndexWriter, Utterance
from valle2.training.loader import Loader
from valle2.training.loop import deterministic, new_state
from valle2.training.objective import AR, CodecFacts
from valle2.training.sampler import Place, Sampler
from valle2.training.step import train_step
from valle2.training.streaming import stream

FRAME_RATE, CODEBOOKS = 75, 8
QUANTILES = (0, 5, 10, 25, 50, 75, 90, 95, 100), (1.4, 3.7, 5.3, 11.3, 14.1, 15.1, 15.8, 16.3, 24.0)
"""Seconds of utterances of train-clean-100, by percent."""
TOKENS, SPREAD = 6.0, 0.2
"""Text tokens a second of a small vocabulary, and how much speakers differ."""
WORDS = "one two three four five six seven eight nine ten".split()


def run(options: argparse.Namespace) -> list[Figure]:
    """Planning and padding of many utterances, then the waits of a training."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        os.environ["VALLE2_HOME"] = f"{folder}/home"
        os.chdir(folder)
        figures = [*planning(options.utterances), *padding()]
        for number, place in enumerate(("local", "S3")):
            write_shards(f"shards-{number}", options.shards, options.cuts)
            with at(place, folder, f"shards-{number}") as location:
                figures += waits(options, place, location)
        os.chdir(options.out.anchor or "/")
    return figures


def librispeech_like(folder: Path, num: int) -> Corpus:
    """An index of utterances whose codes are all the same, so that there is no file of codes as large as theirs."""
    rng = np.random.default_rng(0)
    frames = (seconds_like(rng, num) * FRAME_RATE).astype(int)
    tokens = (frames / FRAME_RATE * TOKENS * rng.normal(1, SPREAD, num).clip(0.4, 1.8)).astype(int) + 1
    with IndexWriter(folder / "train") as index:
        for i, (length, count) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True)):
            index.add(Utterance(f"1034-121119-{i:08d}", f"s{i % 2000}", [i % 300] * count, 0, length))
        array = ArrayWriter(index.building / "codes.npy", "<i2", 1)
        array.extend(np.zeros((int(frames.max()), 1)))
        array.close()
    return Corpus(folder, "train")


def seconds_like(rng: np.random.Generator, num: int) -> np.ndarray:
    """Lengths of utterances."""
    percent, seconds = QUANTILES
    return np.interp(rng.uniform(0, 100, num), percent, seconds)


def planning(num: int) -> list[Figure]:
    """Seconds and memory of an epoch's plan; beside it, of a tenth of the utterances with rows as objects."""
    corpus = librispeech_like(Path("many"), num)
    sampler = Sampler(corpus, TrainConfig(), TransformerConfig(), FRAME_RATE, 1, "ar")
    seconds = timed(lambda: sampler.epoch(0))
    tracemalloc.start()
    sampler.epoch(1)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    small = librispeech_like(Path("few"), num // 10)
    objects = Sampler(small, TrainConfig(word_spans=1e-9), TransformerConfig(), FRAME_RATE, 1, "ar")
    first = timed(lambda: objects.epoch(0))
    return [
        Figure(f"plan of an epoch of {num:,} utterances", seconds, "s"),
        Figure("the same, most memory meanwhile", most / 1e9, "GB"),
        Figure("opening the index", timed(lambda: Corpus(Path("many"), "train")), "s"),
        Figure("first plan of rows as objects / as columns, per utterance", 10 * first / seconds),
    ]


def padding() -> list[Figure]:
    """Share of positions that is padding, in batches of the default size."""
    corpus, figures = Corpus(Path("few"), "train"), []
    for group_size in (1, 4):
        sampler = Sampler(corpus, TrainConfig(), TransformerConfig(), FRAME_RATE, 1, "ar", group_size)
        epoch = sampler.epoch(0)
        batches = [collate(corpus, epoch[place], group_size) for place in range(0, len(epoch), 10)]
        share = padding_share(batches, group_size)
        figures.append(Figure(f"padding, G = {group_size}", share, "share", 0.08, at_least=False))
    return figures


def write_shards(folder: str, num: int, cuts: int) -> None:
    """Shards as `tokenize` writes them, without its work, and the other inputs of a training."""
    rng, entries = np.random.default_rng(0), []
    target = Path(folder) / "train"
    target.mkdir(parents=True)
    for number in range(num):
        lines, path = [], target / f"codes.{number:06d}.tar"
        frames = 0
        with path.open("wb") as tar:
            for i, seconds in enumerate(seconds_like(rng, cuts)):
                name, length = f"cut-{number:04d}-{i:05d}", int(seconds * FRAME_RATE)
                array = rng.integers(0, 1024, (CODEBOOKS, length), np.int16)
                about = Shape(list(array.shape))
                _add(tar, f"{name}.npy", _npy_bytes(array), about)  # type: ignore[arg-type]
                said = {"text": " ".join(WORDS[j] for j in rng.integers(0, 10, max(int(2.5 * seconds), 1))),
                        "speaker": f"s{i % 40}"}  # fmt: skip
                lines.append(json.dumps({"id": name, "supervisions": [said], "custom": {"codes": about.to_dict()}}))
                frames += length
            tar.write(bytes(2 * tarfile.BLOCKSIZE))
            tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
        own = target / f"cuts.{number:06d}.jsonl"
        own.write_text("\n".join(lines) + "\n")
        files = {field: {"file": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size}
                 for field, file in (("cuts", own), ("codes", path))}  # fmt: skip
        entries.append({**files, "cuts_count": cuts, "frames": frames, "samples": 320 * frames})
    manifest = {
        "format": 1, "codec": {"name": "none", "digest": "0", "codes_digest": "1"}, "sample_rate": 24000,
        "frame_rate": FRAME_RATE, "num_codebooks": CODEBOOKS, "codebook_size": 1024,
        "splits": {"train": {"shards": entries}, "dev": {"shards": []}},
    }  # fmt: skip
    write_json(output("tokenize") / "manifest.json", manifest)
    output("curate").mkdir(parents=True, exist_ok=True)
    train_bpe(WORDS, 60).save(output("curate") / "bpe.json")


class Shape:
    """What `tokenize` says of a cut's codes."""

    def __init__(self, shape: list[int]) -> None:
        self._shape = shape

    def to_dict(self) -> dict[str, object]:
        return {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": self._shape}


@contextmanager
def at(place: str, folder: str, shards: str) -> Iterator[str]:
    """Where shards are fetched from; the manifest names it."""
    manifest = json.loads((output("tokenize") / "manifest.json").read_text())
    if place == "local":
        manifest["location"] = f"file://{folder}/{shards}"
        write_json(output("tokenize") / "manifest.json", manifest)
        yield manifest["location"]
        return
    server = Swift(Path(folder) / "swift")
    try:
        server.start()
        os.environ.update(AWS_ENDPOINT_URL=server.url, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET,
                          AWS_DEFAULT_REGION="us-east-1")  # fmt: skip
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for path in sorted(Path(shards, "train").iterdir()):
            client.upload_file(str(path), "bench", f"train/{path.name}")
        manifest["location"] = "s3://bench"
        write_json(output("tokenize") / "manifest.json", manifest)
        yield "s3://bench"
    finally:
        server.kill()


def waits(options: argparse.Namespace, place: str, location: str) -> list[Figure]:
    """Share of a training's time in which it waits for data, from the second update on."""
    heads = max(options.dim // 64, 1)
    ar = {"num_layers": options.layers, "dim": options.dim, "num_heads": heads, "ffn_dim": 4 * options.dim,
          "max_text_tokens": 512, "max_frames": 2250}  # fmt: skip
    train = {"batch_frames": options.frames, "stream_shards": 2, "cache_gb": 10.0, "bf16": False}
    config = TrainParams.model_validate(parse_config({"model": {"ar": ar}, "train_ar": train}).model_dump(
        include={"runtime", "model", "train_ar", "train_nar"}))  # fmt: skip
    manifest = json.loads((output("tokenize") / "manifest.json").read_text())
    objective, figures = AR(config, CodecFacts.of(manifest)), []
    bpe = Bpe.load(output("curate") / "bpe.json")
    for num_workers in (0, 2):
        began = time.monotonic()
        folder = Path(f"work-{place}-{num_workers}")
        corpus = stream("train", bpe, objective.shape, 1, folder, config.train_ar, "ar")
        sampler = Sampler(corpus, config.train_ar, objective.shape, FRAME_RATE, 1, "ar", objective.group_size)
        with deterministic(1, options.threads), Loader(sampler, Place(), num_workers=num_workers) as loader:
            state = new_state(objective.build(bpe.vocab_size).train(), objective.train)
            train_step(state, Shared(state.model, Ranks(), "ddp"), next(loader).batches, objective, Ranks(), 0)
            start, waited, slowest = time.monotonic(), 0.0, 0.0
            for _ in range(options.steps):
                update = next(loader)
                waited, slowest = waited + update.waited, max(slowest, update.waited)
                train_step(state, update.batches, objective)
            seconds = time.monotonic() - start
        name = f"{place}, {num_workers} workers"
        bound = 0.03 if num_workers else None
        figures += [
            Figure(f"{name}: waits", waited / seconds, "share", bound, at_least=False),
            Figure(f"{name}: longest wait", 1000 * slowest, "ms"),
            Figure(f"{name}: step", 1000 * seconds / options.steps, "ms"),
            Figure(f"{name}: index, fetch and first step", start - began, "s"),
        ]
        figures.append(Figure(f"{name}: epochs seen", update.place.epoch + update.place.batch / len(sampler.epoch(
            update.place.epoch)), "times"))  # fmt: skip
    return figures


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main("Loading", run, utterances=1_000_000, shards=30, cuts=60, frames=3000, steps=120)
