"""Batches: the same whoever makes them, no cut twice or never, little padding, and shards that come as they are needed.

The S3 server is a real one; see `tests.swift`.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
import s3fs
import torch
from lhotse import MonoCut, Recording, SupervisionSegment

from tests.corpora import config, write_audio, write_rows
from tests.swift import KEY, SECRET, Swift
from valle2 import storage
from valle2.config.model import TransformerConfig
from valle2.config.params import parse_config
from valle2.config.train import TrainConfig
from valle2.corpus import tokenize as stage
from valle2.corpus import tokenizer
from valle2.errors import ShardError, StorageError, TrainingError, Valle2Error
from valle2.shards import read_manifest
from valle2.stage import output, write_json
from valle2.text import Bpe, train_bpe
from valle2.tracking import home
from valle2.training import data
from valle2.training.data import Batch, Corpus, collate, pack, padding_share
from valle2.training.loader import Loader, Update
from valle2.training.loop import train
from valle2.training.objective import AR, CodecFacts
from valle2.training.sampler import Place, Sampler, cut_batches
from valle2.training.streaming import stream

WORDS = "the red boat a green bird sings seven small stones fall peter sees horse two old birds quiet river".split()
SHAPE = TransformerConfig(num_layers=1, dim=16, num_heads=2, ffn_dim=32, max_text_tokens=90, max_frames=500)
AWAY = 30.0
"""Seconds."""


def spoken(num: int) -> list[SimpleNamespace]:
    """Cuts as `read_shards` gives them, with words of known times."""
    rng = np.random.default_rng(num)
    cuts = []
    for i in range(num):
        words = [WORDS[j] for j in rng.integers(0, len(WORDS), rng.integers(2, 9))]
        frames = int(rng.integers(20, 45) * len(words))
        times = [SimpleNamespace(start=n / len(words), end=(n + 0.9) / len(words)) for n in range(len(words))]
        said = SimpleNamespace(text=" ".join(words), speaker=f"s{i % 7}", alignment={"word": times})
        codes = rng.integers(0, 32, (3, frames)).astype(np.int16)
        cuts.append(SimpleNamespace(id=f"cut-{i:03d}", supervisions=[said], codes=codes, duration=1.0))
    return cuts


def packed(monkeypatch: pytest.MonkeyPatch, num: int, shape: TransformerConfig = SHAPE) -> Corpus:
    monkeypatch.setattr(data, "read_shards", lambda root, split: spoken(num))
    monkeypatch.setattr(data, "load_codes", lambda cut: cut.codes)
    return pack("train", train_bpe(WORDS, 60), shape, 3, Path("codes"), with_breaks=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def order(corpus: Corpus, group_size: int = 2, seed: int = 1, **changes: Any) -> Sampler:
    settings = TrainConfig(**({"num_steps": 9, "batch_frames": 1500} | changes))
    return Sampler(corpus, settings, SHAPE, 75.0, seed, "ar", group_size)


def same(one: Batch, other: Batch) -> bool:
    tensors = (name for name, value in vars(one).items() if isinstance(value, torch.Tensor))
    return one.ids == other.ids and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def taken(sampler: Sampler, num_updates: int, place: Place | None = None, **options: Any) -> list[Update]:
    with Loader(sampler, place or Place(), **options) as loader:
        return [next(loader) for _ in range(num_updates)]


GOLDEN = [
    ({"join_seconds": 6.0}, "6105fdbcfdec66cc590dd739bff12c4f3e67a4e7d810dfdd133287b04e95c443"),
    ({"word_spans": 0.7}, "4f7d017e4d80d030518ca1ba0b8cde5ca9d335b96ee9084e259e694c684686c0"),
    (
        {"join_seconds": 5.0, "word_spans": 0.8, "num_steps": 2000},
        "1c5aba2f15fa0aff8768e76f109c0f2d34fac8c9fe0daea2b563a03317f550c3",
    ),
    (
        {"join_seconds": 5.0, "word_spans": 0.8, "warm_start": "x"},
        "552db916835ecb93bdbcf15d1a14a198417fb4bfc567e2efa6ec9077aa6fe6bd",
    ),
]
"""Digests of batches as they were when the index was made of Python objects: the bundled recipes rely on them."""


@pytest.mark.parametrize(("changes", "digest"), GOLDEN)
def test_joined_rows_are_those_that_the_recipes_were_made_with(
    changes: dict[str, Any], digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, sha256 = order(packed(monkeypatch, 150), **changes), hashlib.sha256()
    for epoch in (0, 1, 5):
        for rows in sampler.epoch(epoch):
            about = [[[one.id, one.text, one.start, one.num_frames, one.breaks] for one in row] for row in rows]
            sha256.update(json.dumps(about).encode())
            made = collate(sampler.corpus, rows, 2)
            for name in ("text", "text_lengths", "codes", "code_lengths", "text_words", "code_words"):
                sha256.update(np.ascontiguousarray(getattr(made, name).numpy()).tobytes())
    assert sha256.hexdigest() == digest


def test_the_index_gives_back_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, bpe = packed(monkeypatch, 60), train_bpe(WORDS, 60)
    assert len(corpus.utterances) == 60 and corpus.num_frames == sum(cut.codes.shape[1] for cut in spoken(60))
    for one, cut in zip(corpus.utterances, spoken(60), strict=True):
        said = cut.supervisions[0]
        assert (one.id, one.speaker, bpe.decode(one.text)) == (cut.id, said.speaker, said.text)
        assert np.array_equal(corpus.codes(one), cut.codes.T)
        assert len(one.breaks) == len(said.text.split()) - 1
    assert corpus.utterances[-1] == corpus.utterances[59]
    with pytest.raises(IndexError):
        corpus.utterances[60]


@pytest.mark.parametrize("changes", [{}, {"join_seconds": 5.0, "word_spans": 0.5}])
def test_any_number_of_workers_and_any_place_to_go_on_from_give_the_same_batches(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = packed(monkeypatch, 150)
    whole = taken(order(corpus, **changes), 30, accumulate=2)
    assert whole[-1].place.epoch > 1, "over two ends of epochs"
    for num_workers in (1, 2):
        found = taken(order(corpus, **changes), 30, accumulate=2, num_workers=num_workers)
        assert [one.place for one in found] == [one.place for one in whole]
        assert all(same(a, b) for one, two in zip(found, whole, strict=True)
                   for a, b in zip(one.batches, two.batches, strict=True))  # fmt: skip
    for start in range(29):
        again = taken(order(corpus, **changes), 2 if start < 28 else 1, whole[start].place, accumulate=2)
        for one, two in zip(again, whole[start + 1 :], strict=False):
            assert one.place == two.place and all(map(same, one.batches, two.batches))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_share_out_what_one_alone_takes(
    world_size: int, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = packed(monkeypatch, 150)
    alone = taken(order(corpus), 8, accumulate=6)
    options: dict[str, Any] = {"accumulate": 6, "num_workers": num_workers, "world_size": world_size}
    ranks = [taken(order(corpus), 8, rank=rank, **options) for rank in range(world_size)]
    for number, one in enumerate(alone):
        shares = [rank[number] for rank in ranks]
        assert all(share.place == one.place for share in shares)
        for m, batch in enumerate(one.batches):
            assert same(batch, shares[m % world_size].batches[m // world_size])
    epoch = [cut for one in alone for batch in one.batches for cut in batch.ids][: len(corpus.utterances)]
    assert sorted(epoch) == [f"cut-{i:03d}" for i in range(150)], "every cut once, none twice"


def test_batches_are_bounded_with_their_padding_and_as_large_as_can_be() -> None:
    rng = np.random.default_rng(0)
    frames = np.sort(rng.integers(20, 900, 3000)) + rng.integers(0, 30, 3000)
    starts, ends = cut_batches(frames.astype(np.int32), 4000)
    assert starts[0] == 0 and ends[-1] == 3000 and (starts[1:] == ends[:-1]).all()
    for start, end in zip(starts, ends, strict=True):
        assert (end - start) * frames[start:end].max() <= 4000
        assert end == 3000 or (end + 1 - start) * frames[start : end + 1].max() > 4000
    longer = cut_batches(np.array([10, 5000, 6000], np.int32), 4000)
    assert [bound.tolist() for bound in longer] == [[0, 1, 2], [1, 2, 3]], "a row that is longer is alone"


@pytest.mark.parametrize("group_size", [1, 4])
def test_padding_of_librispeech_like_lengths(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.loading import librispeech_like

    corpus = librispeech_like(Path("like"), 20_000)
    sampler = order(corpus, group_size, batch_frames=6000)
    rows = [sampler.epoch(0)[place] for place in range(0, len(sampler.epoch(0)), 7)]
    assert padding_share([collate(corpus, row, group_size) for row in rows], group_size) < 0.04


def test_cuts_meet_others_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = order(packed(monkeypatch, 150))
    first, second = ({frozenset(row[0].id for row in rows) for rows in sampler.epoch(n)} for n in (0, 1))
    assert len(first & second) < len(first) / 4
    other = order(sampler.corpus, seed=2)
    assert {frozenset(row[0].id for row in rows) for rows in other.epoch(0)} != first


def test_bad_sizes_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = packed(monkeypatch, 20)
    with pytest.raises(TrainingError, match=r"more ranks than batches: 64 ranks.*start fewer ranks"):
        Loader(order(corpus), Place(), accumulate=64, world_size=64)
    with pytest.raises(TrainingError, match=r"train_nar.accumulate is 3, which 2 ranks cannot share.*multiple of 2"):
        Loader(order(corpus), Place(), accumulate=3, world_size=2, kind="nar")
    with pytest.raises(TrainingError, match=r"training set too small"):
        order(corpus, batch_frames=10**6)


@pytest.mark.parametrize(
    ("num", "max_frames", "sentence"),
    [
        (0, 500, "the train split is empty; see .*funnel.json"),
        (20, 10, "all 20 utterances .* position tables; raise model.ar.max_text_tokens or model.ar.max_frames"),
        (20, 100, r"too small for the batch: \d+ utterances \(\d+ more are longer than model.ar's position tables\)"),
    ],
)
def test_nothing_to_train_on_is_one_sentence(
    num: int, max_frames: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = packed(monkeypatch, num, SHAPE.model_copy(update={"max_frames": max_frames}))
    with pytest.raises(TrainingError, match=sentence):
        order(corpus, batch_frames=5000)


def workers() -> list[int]:
    """Processes of loaders that this process has started."""
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.name.startswith("loader") and child.pid]


def test_a_killed_worker_is_one_sentence_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loader(order(packed(monkeypatch, 150)), Place(), num_workers=2) as loader:
        next(loader)
        os.kill(workers()[0], signal.SIGKILL)
        with pytest.raises(TrainingError, match=r"worker.*exit code -9.*train_ar.num_workers"):
            for _ in range(20):
                next(loader)
    assert not workers()


ORPHANS = """
if __name__ == "__main__":
    import os, sys
    from tests.test_loading import *

    data.read_shards, data.load_codes = lambda root, split: spoken(150), lambda cut: cut.codes
    corpus = pack("train", train_bpe(WORDS, 60), SHAPE, 3, Path("codes"))
    loader = Loader(order(corpus), Place(), num_workers=2)
    next(loader)
    print(*workers(), flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "told":
        os.killpg(0, signal.SIGTERM)
"""


@pytest.mark.parametrize("end", ["killed", "told", "finished"])
def test_no_worker_outlives_its_training(end: str, repository: Path) -> None:
    Path("orphans.py").write_text(ORPHANS)
    done = subprocess.run(
        [sys.executable, "orphans.py", end], env=os.environ | {"PYTHONPATH": str(repository)}, timeout=120,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == {"killed": -signal.SIGKILL, "told": -signal.SIGTERM, "finished": 0}[end]
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    began = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in pids):
        assert time.monotonic() - began < 10
        time.sleep(0.1)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


class NoisyCodec:
    """Codes from the samples' own noise; stands for EnCodec."""

    digest, codes_digest = "noisy", "noisy codes"
    sample_rate, frame_rate, hop_length, num_codebooks, codebook_size = 24_000, 75, 320, 8, 1024

    def encode(self, waveform: torch.Tensor, num_samples: torch.Tensor | None = None) -> torch.Tensor:
        frames = torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % 320)).view(len(waveform), -1, 320)
        return (frames[..., :8].abs() * 1000).long().transpose(1, 2)


def shards(monkeypatch: pytest.MonkeyPatch, to: str = "", num: int = 60) -> None:
    """A real tokenize output of many small shards; some ids are too long for a tar header."""
    for module in (stage, tokenizer):
        monkeypatch.setattr(module, "load_codec", lambda name, device: NoisyCodec())
    rng = np.random.default_rng(0)
    path = write_audio(Path("data/noise.wav"), 0.5 * rng.standard_normal(24_000 * 40).clip(-1, 1), 24_000)
    recording = Recording.from_file(path, recording_id="noise")
    cuts = []
    for i in range(num):
        name = f"cut-{i:03d}" + "-long" * (25 if i % 9 == 0 else 0)
        text, length = " ".join(WORDS[j] for j in rng.integers(0, len(WORDS), 4)), float(rng.integers(24, 60)) / 24
        said = SupervisionSegment(name, name, 0, length, text=text, speaker=f"s{i % 5}", language="en")
        cuts.append(MonoCut(name, 0.5 * i, length, 0, [said], None, recording, {"source": "noise", "sha256": name}))
    for split, members in {"train": cuts, "dev": [], "test": []}.items():
        write_rows(output("curate") / f"{split}.jsonl", [cut.to_dict() for cut in members])
    train_bpe(WORDS, 60).save(output("curate") / "bpe.json")
    stage.tokenize(config(tokenize={"part_seconds": 4, "shard_mb": 0.3, "to": to}))


def streamed(folder: str = "stream", window: int = 3, **changes: Any) -> Sampler:
    settings = {"num_steps": 9, "batch_frames": 600, "stream_shards": window} | changes
    bpe = Bpe.load(output("curate") / "bpe.json")
    corpus = stream("train", bpe, SHAPE, 3, Path(folder), TrainConfig(**settings), "ar")
    return order(corpus, **settings)


def updates_of_an_epoch(sampler: Sampler, **options: Any) -> list[Update]:
    return taken(sampler, len(sampler.epoch(0)), **options)


def cuts_in(updates: list[Update]) -> list[str]:
    return [cut for update in updates for batch in update.batches for cut in batch.ids]


def test_places_in_tars_are_where_tarfile_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shards(monkeypatch)
    corpus = streamed().corpus
    entries = read_manifest(output("tokenize"))["splits"]["train"]["shards"]
    assert len(entries) > 8
    found = {}
    for number, entry in enumerate(entries):
        with tarfile.open(output("tokenize") / "shards/train" / entry["codes"]["file"]) as tar:
            found |= {member.name: (number, member.offset_data - 512) for member in tar if "npy" in member.name}
    assert {f"{one.id}.npy": (one.shard, one.member) for one in corpus.utterances} == found
    whole = pack("train", Bpe.load(output("curate") / "bpe.json"), SHAPE, 3, Path("packed"))
    for one, other in zip(corpus.utterances, whole.utterances, strict=True):
        assert (one.id, one.text, one.speaker) == (other.id, other.text, other.speaker)
        assert np.array_equal(corpus.codes(one), whole.codes(other))


@pytest.mark.parametrize("join", [0.0, 4.0])
def test_streamed_batches_are_the_same_from_anywhere_with_any_workers_and_ranks(
    join: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards(monkeypatch)
    local = updates_of_an_epoch(streamed(join_seconds=join))
    cuts = cuts_in(local)
    assert len(cuts) == len(set(cuts)) == 60
    shards(monkeypatch, to=f"file://{tmp_path}/place")
    for num_workers in (0, 2):
        far = updates_of_an_epoch(streamed("far", join_seconds=join, cache_gb=0.001), num_workers=num_workers)
        assert all(same(one.batches[0], two.batches[0]) for one, two in zip(far, local, strict=True))
    for rank in (0, 1):  # more shards than any rank's share, and windows that no rank has to itself
        own = taken(streamed("far", join_seconds=join), len(local) // 2, accumulate=2, rank=rank, world_size=2)
        assert all(same(one.batches[0], two.batches[0]) for one, two in zip(own, local[rank::2], strict=False))
    for start in range(0, len(local) - 1, 3):
        [again] = taken(streamed("far", join_seconds=join), 1, local[start].place)
        assert same(again.batches[0], local[start + 1].batches[0])


def test_more_ranks_than_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    shards(monkeypatch, num=12)
    assert len(read_manifest(output("tokenize"))["splits"]["train"]["shards"]) == 3
    options: dict[str, Any] = {"accumulate": 4, "world_size": 4}
    found = [cuts_in(taken(streamed(batch_frames=200, window=2), 3, rank=rank, **options)) for rank in range(4)]
    together = cuts_in(taken(streamed(batch_frames=200, window=2), 3, accumulate=4))
    assert sorted(cut for rank in found for cut in rank) == sorted(together)


def cached() -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (home() / "shards").rglob("*.tar")}


def test_only_what_is_in_use_and_to_come_is_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shards(monkeypatch, to=f"file://{tmp_path}/place")
    sizes = [entry["codes"]["bytes"] for entry in read_manifest(output("tokenize"))["splits"]["train"]["shards"]]
    room = sum(sorted(sizes)[-6:])
    sampler = streamed(window=2, cache_gb=(room + 1) / 1e9)
    assert not cached(), "the index needs no codes"
    most = 0
    with Loader(sampler, Place(), num_workers=1) as loader:
        for _ in range(3 * len(sampler.epoch(0))):
            next(loader)
            most = max(most, sum(cached().values()))
    assert room / 2 <= most <= room < sum(sizes)
    with pytest.raises(TrainingError, match=r"train_ar.cache_gb is .*raise it, or lower train_ar.stream_shards"):
        streamed("other", window=2, cache_gb=max(sizes) / 1e9)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["removed", "flipped", "short"])
def test_a_shard_lost_in_the_middle_is_named_and_training_goes_on_when_it_is_back(
    damage: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(monkeypatch)
    whole = updates_of_an_epoch(streamed(window=1))
    sampler = streamed(window=1)
    last = int(sampler.windows(0)[-1][0])
    name = read_manifest(output("tokenize"))["splits"]["train"]["shards"][last]["codes"]["file"]
    path = output("tokenize") / "shards/train" / name
    content = path.read_bytes()
    seen, place = [], Place()
    with Loader(sampler, place, num_workers=num_workers) as loader, pytest.raises(ShardError, match=name):
        for number in range(len(whole)):
            seen.append(next(loader))
            place = seen[-1].place
            if number == 1 and damage == "removed":
                path.unlink()
            elif number == 1:
                middle = len(content) // 2
                path.write_bytes(content[:middle] + (b"" if damage == "short" else b"x" + content[middle + 1 :]))
    assert 2 <= len(seen) < len(whole)
    path.write_bytes(content)
    seen += taken(streamed(window=1), len(whole) - len(seen), place)
    assert cuts_in(seen) == cuts_in(whole)


def test_training_that_lost_a_shard_goes_on_from_its_checkpoint_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards(monkeypatch)
    settings = {
        "num_steps": 40, "batch_frames": 600, "stream_shards": 1, "checkpoint_every": 1, "warmup_steps": 2,
        "bf16": False, "num_workers": 1,
    }  # fmt: skip
    params = parse_config({"runtime": {"num_threads": 1}, "model": {"ar": SHAPE.model_dump()}, "train_ar": settings})
    objective = AR(params, CodecFacts.of(read_manifest(output("tokenize"))))

    class Checking:
        """A tracker."""

        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            assert "data_wait_share" in metrics and 0 <= metrics["padding_share"] < 1

    train(params, objective, Path("whole"), Checking(), inputs={})
    last = order(streamed(window=1).corpus, seed=params.runtime.seed, stream_shards=1).windows(0)[-1][0]
    path = sorted((output("tokenize") / "shards/train").glob("codes.*"))[last]
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ShardError, match=path.name):
        train(params, objective, Path("lost"), Checking(), inputs={})
    assert list(Path("lost/checkpoints").glob("step-*"))
    path.write_bytes(content)
    assert train(params, objective, Path("lost"), Checking(), inputs={})["resumed_at"] > 2
    weights = [Path(work, "out/model.safetensors").read_bytes() for work in ("whole", "lost")]
    assert weights[0] == weights[1]


def test_a_shard_lost_while_it_is_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    shards(monkeypatch)
    sampler = streamed(window=100)
    with Loader(sampler, Place()) as loader:
        next(loader)
        for path in (output("tokenize") / "shards/train").glob("codes.*"):
            path.unlink()
        with pytest.raises(ShardError, match=r"shard file .*codes.*tar is missing; put it back"):
            next(loader)


def test_a_manifest_that_does_not_fit_its_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shards(monkeypatch)
    manifest = read_manifest(output("tokenize"))
    manifest["splits"]["train"]["shards"][1]["codes"]["bytes"] += 10240
    write_json(output("tokenize") / "manifest.json", manifest)
    with pytest.raises(ShardError, match=r"codes.000001.tar is not laid out as expected"):
        streamed()


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def bucket(swift: Swift, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = "b" + "".join(letter for letter in folder.name if letter.isalnum()).lower()[-40:]
    boto3.client("s3").create_bucket(Bucket=name)
    yield name
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_s3_away_for_half_a_minute_costs_nothing(
    swift: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shards(monkeypatch)
    local = updates_of_an_epoch(streamed(window=2))
    shards(monkeypatch, to=f"s3://{bucket}/shards")
    found, began = [], 0.0
    with Loader(streamed("far", window=2), Place(), num_workers=1) as loader:
        for number in range(len(local)):
            found.append(next(loader))
            if number == 1:
                swift.kill()
                began = time.monotonic()
                threading.Timer(AWAY, swift.start).start()
    assert time.monotonic() - began > AWAY
    assert all(same(one.batches[0], two.batches[0]) for one, two in zip(found, local, strict=True))
    assert "does not answer" in capfd.readouterr().err


@pytest.mark.slow
def test_s3_that_stays_away_or_has_lost_a_shard_is_one_sentence(
    swift: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(monkeypatch, to=f"s3://{bucket}/shards")
    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    sampler = streamed(window=1)
    key = read_manifest(output("tokenize"))["splits"]["train"]["shards"][int(sampler.windows(0)[-1][0])]["codes"][
        "file"
    ]
    client = boto3.client("s3")
    whole = client.get_object(Bucket=bucket, Key=f"shards/train/{key}")["Body"].read()
    faults: list[tuple[Any, Any, str]] = [
        (lambda: client.delete_object(Bucket=bucket, Key=f"shards/train/{key}"), lambda: None, f"nothing at .*{key}"),
        (
            lambda: client.put_object(Bucket=bucket, Key=f"shards/train/{key}", Body=whole[:-1] + b"x"),
            lambda: client.put_object(Bucket=bucket, Key=f"shards/train/{key}", Body=whole),
            f"{key} is damaged",
        ),
        (swift.kill, swift.start, f"cannot reach s3://{bucket}/shards/.*goes on where it stopped"),
    ]
    count = len(sampler.epoch(0))
    for fault, mend, sentence in faults:
        for path in (home() / "shards").rglob("*.tar"):
            path.unlink()
        seen: list[Update] = []
        began = time.monotonic()
        error: type[Valle2Error] = StorageError
        with Loader(streamed(window=1), Place()) as loader, pytest.raises(error, match=sentence):
            for number in range(count):
                seen.append(next(loader))
                if number == 1:
                    fault()
        assert 2 <= len(seen) < count and time.monotonic() - began < 60
        mend()
    assert len(cuts_in(seen + taken(streamed(window=1), count - len(seen), seen[-1].place))) == 60
