"""Training on a small made-up corpus: exact resume, refusals, and what is written."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from valle2.config.model import TransformerConfig
from valle2.config.params import Config, parse_config
from valle2.config.sampling import SamplingConfig
from valle2.config.train import TrainConfig
from valle2.errors import TrainingError
from valle2.model_folder import write_bundle
from valle2.stage import write_json
from valle2.text import train_bpe
from valle2.training import data
from valle2.training.data import Corpus, collate, pack
from valle2.training.distributed import Ranks, Shared
from valle2.training.loop import new_state, train
from valle2.training.memory import memory_gb
from valle2.training.objective import AR, NAR, CodecFacts, Objective
from valle2.training.sampler import Place, Sampler, batch_by_frames
from valle2.training.step import autocast, learning_rate, train_step

SENTENCES = ["the red boat", "a green bird sings", "seven small stones fall", "the boat sings", "a bird falls"]
MANIFEST: dict[str, Any] = {
    "format": 1,
    "codec": {"name": "none", "digest": "0" * 64, "codes_digest": "1" * 64},
    "sample_rate": 24000,
    "frame_rate": 75.0,
    "num_codebooks": 3,
    "codebook_size": 32,
    "splits": {},
}
SHAPE = {"num_layers": 1, "dim": 16, "num_heads": 2, "ffn_dim": 32, "max_text_tokens": 32, "max_frames": 400}
SETTINGS: dict[str, Any] = {
    "num_steps": 9,
    "batch_frames": 300,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "checkpoint_every": 2,
    "validate_every": 4,
    "log_every": 3,
    "num_workers": 0,
}


class Silent:
    """A tracker that keeps its points."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, dict(metrics)))


class KillAt(Silent):
    """A tracker that kills the process."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_corpus(root: Path) -> None:
    """Tokenizer, manifest and packed codes, as the stages before leave them."""
    (root / "artifacts/curate").mkdir(parents=True)
    train_bpe(SENTENCES, 60).save(root / "artifacts/curate/bpe.json")
    write_json(root / "artifacts/tokenize/manifest.json", MANIFEST)


def word_times(i: int) -> dict[str, list[SimpleNamespace]]:
    words = SENTENCES[i % 5].split()
    return {"word": [SimpleNamespace(start=n / len(words), end=(n + 1) / len(words)) for n in range(len(words))]}


def fake_cuts(num: int) -> list[SimpleNamespace]:
    rng = np.random.default_rng(num)
    return [
        SimpleNamespace(
            id=f"cut-{i:02d}",
            supervisions=[SimpleNamespace(text=SENTENCES[i % 5], speaker=f"s{i % 3}", alignment=word_times(i))],
            codes=rng.integers(0, 32, (3, int(rng.integers(60, 110)))).astype(np.int16),
            duration=1.0,
        )
        for i in range(num)
    ]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "read_shards", lambda root, split: fake_cuts(20 if split == "train" else 4))
    monkeypatch.setattr(data, "load_codes", lambda cut: cut.codes)
    return tmp_path


def configure(**changes: Any) -> Config:
    settings = SETTINGS | changes
    model = {"group_size": settings.pop("group_size", 2), "ar": SHAPE, "nar": SHAPE | {"num_layers": 2}}
    return parse_config({"runtime": {"num_threads": 1}, "model": model, "train_ar": settings, "train_nar": settings})


def objective(config: Config, kind: str = "ar") -> Objective:
    return (AR if kind == "ar" else NAR)(config, CodecFacts.of(MANIFEST))


def run(work: Path, config: Config, kind: str = "ar", tracker: Silent | None = None) -> dict[str, Any]:
    return train(config, objective(config, kind), work, tracker or Silent(), inputs={kind: config.model_dump()})


def killed_run(work: Path, config: Config, kind: str, step: int) -> None:
    """Train in a process that is killed at a step."""
    child = os.fork()
    if child == 0:
        try:
            run(work, config, kind, KillAt(step))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def outputs(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((work / "out").iterdir())}


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_training_is_deterministic_and_writes_its_outputs(workspace: Path, kind: str) -> None:
    tracker = Silent()
    facts = run(workspace / "one", configure(join_seconds=2.0, word_spans=0.5), kind, tracker)
    run(workspace / "two", configure(join_seconds=2.0, word_spans=0.5), kind)
    made = outputs(workspace / "one")
    assert made == outputs(workspace / "two")
    assert set(made) == {"model.safetensors", "config.json", "history.jsonl", "metrics.json", "plots.json"}
    assert facts["steps"] == 9 and facts["skipped"] == 0 and facts["resumed_at"] == 0
    points = [json.loads(line) for line in made["history.jsonl"].splitlines()]
    assert [point["step"] for point in points] == [3, 4, 6, 8, 9]
    assert {"loss", "top1", "top10", "valid_loss", "grad_norm", "learning_rate"} <= set(points[-1])
    assert "frames_per_second" in tracker.points[0][1] and "frames_per_second" not in points[0]
    if kind == "ar":
        slots = [points[-1][f"valid_loss_slot_{slot}"] for slot in range(2)]
        assert abs(sum(slots) / 2 - points[-1]["valid_loss"]) < 1e-5 and "loss_slot_0" not in points[-1]
    if kind == "nar":
        assert {"valid_loss_codebook_1", "valid_loss_codebook_2"} <= set(points[-1])


@pytest.mark.parametrize(("early", "wanted"), [(0.0, [0.5, 0.5]), (1.0, [2 / 3, 1 / 3])])
def test_nar_codebooks_are_drawn_as_often_as_told(early: float, wanted: list[float]) -> None:
    objective = NAR(configure(early_codebooks=early), CodecFacts.of(MANIFEST))
    drawn: list[int] = []
    objective._loss = lambda model, batch, codebook, condition: drawn.append(codebook) or {}  # type: ignore[method-assign,func-returns-value,return-value]
    torch.manual_seed(0)
    for _ in range(4000):
        objective.loss(torch.nn.Identity(), SimpleNamespace(code_lengths=torch.tensor([90])))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.bincount(torch.tensor(drawn))[1:] / 4000, torch.tensor(wanted), atol=0.03, rtol=0)


@pytest.mark.parametrize(("kind", "bf16", "ema"), [("ar", True, 0.0), ("nar", False, 0.9)])
def test_killed_training_goes_on_to_the_same_bytes(workspace: Path, kind: str, bf16: bool, ema: float) -> None:
    changes = {"bf16": bf16, "ema_decay": ema, "log_every": 1, "num_workers": 2}
    config = configure(**changes)
    run(workspace / "whole", config, kind)
    for step in (1, 4, 7):
        killed_run(workspace / "killed", config, kind, step)
    assert run(workspace / "killed", config, kind)["resumed_at"] in (4, 6)  # the last may be unwritten yet
    assert outputs(workspace / "killed") == outputs(workspace / "whole")


@pytest.mark.parametrize(("asked", "native", "used"), [(True, True, True), (True, False, False), (False, True, False)])
def test_bfloat16_only_where_the_processor_has_it(
    asked: bool, native: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    with autocast(torch.device("cpu"), asked):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (torch.bfloat16 if used else torch.float32)


def test_learning_lowers_the_loss(workspace: Path) -> None:
    tracker = Silent()
    run(workspace / "work", configure(num_steps=60, log_every=10, validate_every=1000), "ar", tracker)
    assert tracker.points[-2][1]["loss"] < tracker.points[0][1]["loss"] - 0.1


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_one_batch_is_learned_by_heart(workspace: Path, kind: str) -> None:
    """The loss of a batch that is seen again and again goes to nearly nothing; a wrong shift or mask would bound it."""
    shape = SHAPE | {"dim": 64, "num_heads": 4, "ffn_dim": 128, "dropout": 0.0}
    settings = SETTINGS | {"num_steps": 400, "learning_rate": 3e-3, "warmup_steps": 20, "bf16": False}
    model = {"group_size": 2, "ar": shape, "nar": shape | {"num_layers": 2}}
    config = parse_config({"model": model, "train_ar": settings, "train_nar": settings})
    goal = objective(config, kind)
    torch.manual_seed(0)
    state = new_state(goal.build(64).train(), goal.train)
    split = corpus(workspace)
    batch = collate(split, [[split.utterances[place]] for place in range(3)], 2)
    shared = Shared(state.model, Ranks(), "ddp")
    for _ in range(settings["num_steps"]):
        train_step(state, shared, [batch], goal, Ranks(), 0)
    losses = [figures["loss"] for figures in state.window if "loss" in figures]
    assert sum(losses[-20:]) / 20 < 0.05 < 3 < losses[0]


def test_memory_is_what_the_process_has_taken() -> None:
    block = np.ones(40_000_000)
    assert block.nbytes / 1e9 < memory_gb("cpu") < 100


def test_too_small_training_set_names_the_field(workspace: Path) -> None:
    with pytest.raises(TrainingError, match=r"too small.*20 utterances.*9999999 frames.*lower train_ar.batch_frames"):
        run(workspace / "work", configure(batch_frames=9999999))


class Broken(AR):
    """Its loss is not finite in some steps."""

    bad = frozenset({2})
    step = 0

    def loss(self, model: torch.nn.Module, batch: data.Batch) -> dict[str, torch.Tensor]:
        figures = super().loss(model, batch)
        Broken.step += 1
        return figures | {"loss": figures["loss"] * (float("nan") if Broken.step in self.bad else 1.0)}


def test_non_finite_steps_change_nothing_and_are_counted(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(validate_every=1000)
    monkeypatch.setattr(Broken, "step", 0)
    broken = Broken(config, CodecFacts.of(MANIFEST))
    facts = train(config, broken, workspace / "work", Silent(), inputs={})
    assert facts["skipped"] == 1 and facts["steps"] == 9
    weights = load_file(workspace / "work/out/model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_training_stops_after_many_bad_steps_and_names_cuts(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(max_bad_steps=3)
    monkeypatch.setattr(Broken, "step", 0)
    monkeypatch.setattr(Broken, "bad", frozenset(range(100)))
    with pytest.raises(TrainingError, match=r"3 updates in a row, at step 3.*cut-"):
        train(config, Broken(config, CodecFacts.of(MANIFEST)), workspace / "work", Silent(), inputs={})


@pytest.fixture
def bundle(workspace: Path) -> Path:
    for kind in ("ar", "nar"):
        run(workspace / kind, configure(), kind)
    write_bundle(workspace / "bundle", ar_dir=workspace / "ar/out", nar_dir=workspace / "nar/out",
                 bpe=Path("artifacts/curate/bpe.json"), codec_name="none", decoder="codec",
                 sampling=SamplingConfig())  # fmt: skip
    return workspace / "bundle"


def test_warm_start_takes_the_weights_and_records_the_parent(bundle: Path, workspace: Path) -> None:
    facts = run(workspace / "warm", configure(warm_start="bundle", num_steps=1, learning_rate=1e-12))
    assert facts["parent"]["folder"] == "bundle" and len(facts["parent"]["sha256"]) == 64
    started, parent = (
        load_file(path) for path in (workspace / "warm/out/model.safetensors", bundle / "ar.safetensors")
    )
    for name, value in parent.items():
        torch.testing.assert_close(started[name], value.float(), atol=1e-6, rtol=0)


def test_warm_start_names_every_difference(bundle: Path, workspace: Path) -> None:
    with pytest.raises(TrainingError, match=r"model.group_size is 2 there and 4 here"):
        run(workspace / "a", configure(warm_start="bundle", group_size=4))
    with pytest.raises(TrainingError, match=r"no voice model .*train from scratch"):
        run(workspace / "b", configure(warm_start="nowhere"))
    train_bpe(["quite other words here"], 40).save(Path("artifacts/curate/bpe.json"))
    with pytest.raises(TrainingError, match=r"the text vocabulary is another one: .* entries there"):
        run(workspace / "c", configure(warm_start="bundle"), "nar")


def test_warm_start_goes_by_the_codes_and_refuses_a_model_that_names_none(bundle: Path, workspace: Path) -> None:
    facts = json.loads((bundle / "model.json").read_text())
    facts["codec"]["digest"] = "another decoder"
    write_json(bundle / "model.json", facts)
    run(workspace / "a", configure(warm_start="bundle", num_steps=1))
    del facts["codec"]["codes_digest"]
    write_json(bundle / "model.json", facts)
    with pytest.raises(TrainingError, match="codec's codes digest is unknown there and 111111111111 here"):
        run(workspace / "b", configure(warm_start="bundle", num_steps=1))


def test_checkpoint_of_other_data_is_refused(workspace: Path) -> None:
    config = configure()
    train(config, objective(config), workspace / "work", Silent(), inputs={"rate": 1})
    with pytest.raises(TrainingError, match=r"at step 9 that belongs to other .*: rate is 1 there and 2 here"):
        train(config, objective(config), workspace / "work", Silent(), inputs={"rate": 2})


def test_learning_rate_rises_then_falls_linearly() -> None:
    settings = TrainConfig(num_steps=110, warmup_steps=10, learning_rate=1.0, final_rate_share=0.1)
    assert [round(learning_rate(step, settings), 6) for step in (0, 4, 9, 10, 60, 110)] == [0.1, 0.5, 1, 1, 0.55, 0.1]


def corpus(workspace: Path) -> Corpus:
    bpe = data.Bpe.load(Path("artifacts/curate/bpe.json"))
    return pack("train", bpe, TransformerConfig(**SHAPE), 3, workspace / "codes", with_breaks=True)


def sampler(corpus: Corpus, **changes: Any) -> Sampler:
    return Sampler(corpus, TrainConfig(**(SETTINGS | changes)), TransformerConfig(**SHAPE), 75.0, 1, "ar")


def test_every_epoch_holds_every_utterance_once_in_another_order(workspace: Path) -> None:
    for changes in ({}, {"join_seconds": 3.0}):
        order = sampler(corpus(workspace), **changes)
        epochs = [[one.id for batch in order.epoch(n) for row in batch for one in row] for n in (0, 1)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == [f"cut-{i:02d}" for i in range(20)]
        assert epochs[0] != epochs[1]
        assert all(sum(one.num_frames for row in batch for one in row) <= 300 for batch in order.epoch(0))


def test_joined_rows_are_of_one_speaker_and_bounded(workspace: Path) -> None:
    rows = [row for batch in sampler(corpus(workspace), join_seconds=3.0).epoch(0) for row in batch]
    assert any(len(row) > 1 for row in rows)
    assert all(len({one.speaker for one in row}) == 1 for row in rows)
    assert all(sum(one.num_frames for one in row) <= 225 for row in rows)


def test_joined_rows_grow_in_the_first_quarter_of_a_training_from_scratch(workspace: Path) -> None:
    split = corpus(workspace)

    def pieces_in_a_row(epoch: int, **changes: Any) -> float:
        order = sampler(split, word_spans=1.0, join_seconds=3.0, **changes)
        return float(np.mean([len(row) for batch in order.epoch(epoch) for row in batch]))

    assert pieces_in_a_row(0, num_steps=400) == 1
    assert 1 < pieces_in_a_row(6, num_steps=400) < pieces_in_a_row(100, num_steps=400)
    assert pieces_in_a_row(0, num_steps=10) > 1.5
    assert pieces_in_a_row(0, num_steps=400, warm_start="champion") > 1.5


def test_spans_part_every_utterance_between_words(workspace: Path) -> None:
    split = corpus(workspace)
    whole = {one.id: one for one in split.utterances}
    rows = [row for batch in sampler(split, word_spans=1.0).epoch(0) for row in batch]
    spans = sorted((one for row in rows for one in row), key=lambda one: one.start)
    assert len(spans) > len(whole)
    for name, utterance in whole.items():
        parts = [one for one in spans if one.id == name]
        assert [token for one in parts for token in one.text] == utterance.text
        assert parts[0].start == utterance.start
        assert sum(one.num_frames for one in parts) == utterance.num_frames
        assert all(one.text and one.num_frames >= 20 for one in parts)


def test_words_are_numbered_through_a_row_of_spans(workspace: Path) -> None:
    split = corpus(workspace)
    rows = [row for batch in sampler(split, word_spans=1.0, join_seconds=3.0).epoch(0) for row in batch]
    row = max(rows, key=len)
    batch = collate(split, [row], 2)
    assert len(row) > 1
    bpe = data.Bpe.load(Path("artifacts/curate/bpe.json"))
    spoken = [bpe.decode(one.text).split() for one in row]
    number = 0
    for one, words in zip(row, spoken, strict=True):
        tokens, frames = one.words()
        assert tokens.max() == frames.max() == len(words) - 1
        assert (np.diff(tokens) >= 0).all() and (np.diff(frames) >= 0).all()
        number += len(words)
    assert batch.text_words.max() == batch.code_words.max() == number
    assert batch.text_words.min() == batch.code_words.min() == 1


def test_guidance_teaches_which_word_comes_next_and_which_was_heard(workspace: Path) -> None:
    points = {}
    for guide in (0.0, 1.0):
        tracker = Silent()
        config = configure(guide=guide, word_spans=0.5, num_steps=60, log_every=10, validate_every=1000)
        run(workspace / str(guide), config, "ar", tracker)
        points[guide] = [point for _, point in tracker.points]
    assert "guide" not in points[0.0][0]
    for name in ("guide", "word"):
        assert points[1.0][-2][name] < points[1.0][0][name] - 0.1


def test_words_without_times_of_their_own_give_no_breaks(workspace: Path) -> None:
    bpe = data.Bpe.load(Path("artifacts/curate/bpe.json"))
    cut = fake_cuts(1)[0]
    assert len(data.word_breaks(cut, bpe, bpe.encode("the red boat"), 90)) == 2
    cut.supervisions[0].alignment["word"].pop()
    assert data.word_breaks(cut, bpe, bpe.encode("the red boat"), 90) == []


def test_sampler_goes_on_from_its_place(workspace: Path) -> None:
    order = sampler(corpus(workspace))
    taken, place = [], Place()
    for _ in range(7):
        batch, place = order.take(place, 2)
        taken.append(batch)
    later, _ = sampler(corpus(workspace)).take(order.take(Place(), 6)[1], 2)
    assert later == taken[3]
    assert place.epoch > 0


def test_collate_clips_the_start_to_whole_groups_and_pads_the_end(workspace: Path) -> None:
    split = corpus(workspace)
    rows = next(batch_by_frames([[one] for one in split.utterances], 200))
    batch = collate(split, rows, 4)
    cut = {cut.id: cut.codes for cut in fake_cuts(20)}
    for i, [utterance] in enumerate(rows):
        length = utterance.num_frames // 4 * 4
        assert batch.code_lengths[i] == length
        assert np.array_equal(batch.codes[i, :, :length], cut[utterance.id][:, utterance.num_frames - length :])
        assert not batch.codes[i, :, length:].any()


def test_utterances_beyond_the_tables_are_left_out_and_counted(workspace: Path) -> None:
    bpe = data.Bpe.load(Path("artifacts/curate/bpe.json"))
    short = pack("train", bpe, TransformerConfig(**(SHAPE | {"max_frames": 80})), 3, workspace / "short")
    assert short.left_out > 0 and len(short.utterances) + short.left_out == 20
    assert all(one.num_frames <= 80 for one in short.utterances)
