"""Samples of a training: real shards, a real codec, and a training that does not notice."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from safetensors.torch import load_file

from tests import fabricated
from tests.test_training import Silent
from valle2.config.params import Config, parse_config
from valle2.shards import read_manifest
from valle2.stage import output
from valle2.text import Bpe
from valle2.training.loop import train
from valle2.training.objective import AR, NAR, CodecFacts, describe
from valle2.training.outputs import write_outputs
from valle2.training.samples import Samples, choose_samples, find_nar


class Ears(Silent):
    """A tracker that keeps what it hears and sees."""

    def __init__(self) -> None:
        super().__init__()
        self.sounds: dict[tuple[int, str], np.ndarray] = {}
        self.pictures: dict[tuple[int, str], bytes] = {}
        self.tags: dict[str, str] = {}

    def log_audio(self, step: int, name: str, waveform: np.ndarray, sample_rate: int) -> None:
        assert sample_rate == fabricated.RATE
        self.sounds[step, name] = waveform

    def log_image(self, step: int, name: str, png: bytes) -> None:
        self.pictures[step, name] = png

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    settings = configure()
    fabricated.corpus()
    fabricated.models(settings)
    codec, bpe = CodecFacts.of(read_manifest(output("tokenize"))), Bpe.load(output("curate") / "bpe.json")
    for stage, objective in (("train-ar", AR(settings, codec)), ("train-nar", NAR(settings, codec))):
        weights = objective.build(bpe.vocab_size).state_dict()
        write_outputs(Path("artifacts") / stage, weights, describe(objective, codec, bpe.vocab_size), [])
    return tmp_path


def configure(**changes: Any) -> Config:
    config = fabricated.config().model_dump()
    config["tokenize"]["codec"] = "bundled"
    for stage in ("train_ar", "train_nar"):
        config[stage] |= {"sample_every": 4, **changes}
    return parse_config(config)


def run(work: Path, kind: str, **changes: Any) -> Ears:
    config, ears = configure(**changes), Ears()
    objective = (AR if kind == "ar" else NAR)(config, CodecFacts.of(read_manifest(output("tokenize"))))
    train(config, objective, work, ears, inputs={})
    return ears


@pytest.mark.parametrize(("kind", "ema"), [("ar", 0.0), ("nar", 0.9)])
def test_a_training_with_samples_ends_with_the_same_bytes_as_one_without(
    workspace: Path, kind: str, ema: float
) -> None:
    heard = run(workspace / "with", kind, ema_decay=ema)
    silent = run(workspace / "without", kind, ema_decay=ema, sample_every=0)
    assert not silent.sounds
    for path in sorted((workspace / "without/out").iterdir()):
        assert (workspace / "with/out" / path.name).read_bytes() == path.read_bytes(), path.name
    names = {name for _, name in heard.sounds}
    assert names == {f"cid-00{i}{suffix}" for i in range(3) for suffix in ("", ".reference")}
    assert {step for step, _ in heard.sounds} == {0, 4, 8, 10}
    assert set(heard.pictures) == set(heard.sounds)
    image = Image.open(io.BytesIO(heard.pictures[4, "cid-000"]))
    assert image.format == "PNG" and image.width > 300
    assert all(len(wave) and np.isfinite(wave).all() for wave in heard.sounds.values())
    by = "by artifacts/train-nar" if kind == "ar" else "by the model in training"
    assert heard.tags == {"valle2.samples": f"codebooks 1-7 {by}"}


def test_a_nar_sample_has_the_length_of_its_reference_and_an_ar_one_a_bound(workspace: Path) -> None:
    for kind in ("ar", "nar"):
        sounds = run(workspace / kind, kind).sounds
        for (_, name), wave in sounds.items():
            reference = sounds[0, f"{name.removesuffix('.reference')}.reference"]
            if kind == "nar":
                assert len(wave) == len(reference)
            else:
                assert 0 < len(wave) <= 2 * 1.9 * fabricated.RATE


def test_without_a_nar_of_these_codes_the_first_codebook_is_heard_and_the_name_says_so(workspace: Path) -> None:
    path = output("train-nar") / "config.json"
    path.write_text(path.read_text().replace('"codes_digest": "', '"codes_digest": "0'))
    heard = run(workspace / "ar", "ar")
    assert {name for step, name in heard.sounds if step} == {f"cid-00{i}.codebook-0" for i in range(3)}
    assert "no NAR model" in heard.tags["valle2.samples"]


def test_the_weights_that_are_kept_are_those_that_speak_the_averaged_ones(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[int, str, torch.Tensor]] = []
    monkeypatch.setattr(Samples, "_keep", lambda self, step, name, prompt, new: said.append((step, name, new.clone())))
    run(workspace / "nar", "nar", ema_decay=0.9, learning_rate=0.5)
    config, codec = configure(), CodecFacts.of(read_manifest(output("tokenize")))
    objective, bpe = NAR(config, codec), Bpe.load(output("curate") / "bpe.json")
    kept = load_file(workspace / "nar/out/model.safetensors")
    raw = {name: torch.empty_like(value) for name, value in kept.items()}
    dcp.load({"model": raw}, checkpoint_id=workspace / "nar/checkpoints/step-00000010")
    last = [new for step, _, new in said if step == 10]
    for weights, same in ((kept, True), (raw, False)):
        said.clear()
        Samples(objective, codec, bpe, lambda weights=weights: weights, Ears(), "cpu").speak(4)
        again = [new for step, _, new in said if step == 4]
        assert len(last) == len(again) == 3
        assert all(torch.equal(a, b) for a, b in zip(last, again, strict=True)) is same


def test_other_ranks_give_their_weights_and_say_nothing(workspace: Path) -> None:
    config, asked, ears = configure(), [], Ears()
    codec = CodecFacts.of(read_manifest(output("tokenize")))
    objective, bpe = AR(config, codec), Bpe.load(output("curate") / "bpe.json")
    samples = Samples(objective, codec, bpe, lambda: asked.append(1) or {}, ears, "cpu", is_speaker=False)  # type: ignore[func-returns-value]
    for step in range(1, 11):
        samples.speak(step)
    assert len(asked) == 3 and not ears.sounds


def test_what_samples_lack_is_one_sentence_and_the_training_goes_on(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = output("tokenize") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "bundled"', '"name": "gone"'))
    heard = run(workspace / "ar", "ar")
    assert not heard.sounds and (workspace / "ar/out/model.safetensors").is_file()
    said = capsys.readouterr().err
    assert said.count("samples: none from step 4 on, because") == 1


def test_the_same_utterances_are_chosen_each_time_and_prompts_are_other_ones(workspace: Path) -> None:
    bpe = Bpe.load(output("curate") / "bpe.json")
    first, second = (choose_samples(output("tokenize"), bpe, 75.0, 128, 900) for _ in range(2))
    assert [one.name for one in first] == [one.name for one in second] == ["cid-000", "cid-001", "cid-002"]
    assert [one.codes.shape[1] for one in first] == [113, 120, 128]  # 1.5, 1.6 and 1.7 s
    assert [one.prompt.shape[1] for one in first] == [120, 112, 112]


def test_the_nar_of_the_warm_start_comes_first(workspace: Path) -> None:
    from valle2.model_folder import write_bundle

    config = configure(warm_start="bundle")
    write_bundle(Path("bundle"), ar_dir=output("train-ar"), nar_dir=output("train-nar"),
                 bpe=output("curate") / "bpe.json", codec_name="codec", decoder="codec",
                 sampling=config.evaluate.sampling)  # fmt: skip
    codec = CodecFacts.of(read_manifest(output("tokenize")))
    bpe = Bpe.load(output("curate") / "bpe.json")
    found = find_nar(AR(config, codec), codec, bpe)
    assert found is not None and found[1] == "bundle"
    (Path("bundle") / "bpe.json").write_text("{}")
    again = find_nar(AR(config, codec), codec, bpe)
    assert again is not None and again[1] == "artifacts/train-nar"
