"""Train the bundled aligner: a small wav2vec2 with a character head, in the form WhisperX loads.

    python -m demo.recipes.aligner train --material build/material --work build/aligner
    python -m demo.recipes.aligner export --work build/aligner --model demo/models/aligner

WhisperX starts a word where its first character is emitted and ends it where the word delimiter is. So besides CTC the
model is told, frame by frame, where each of them belongs by espeak-ng's word times: a character on the first frame of
its share of the word, a delimiter on the last frame before the next word, the blank everywhere else.
`demo.recipes.asr_check` scores the result through the real WhisperX.
"""

import argparse
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from demo.recipes.asr_material import ASR_RATE, load_round_trips, written_words
from demo.recipes.material import SAMPLE_RATE, Clip, load_material

STRIDE, FIELD = 320, 400
"""Samples from one frame to the next, and samples that a frame sees."""
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", ".", ",", *"abcdefghijklmnopqrstuvwxyz"]
CODE = {token: code for code, token in enumerate(VOCABULARY)}


@dataclass
class Utterance:
    """One spoken sentence."""

    samples: np.ndarray
    """float16, peak 1, at `ASR_RATE`."""
    words: list[tuple[str, float, float]]
    """Each word as written, with its start and end, s."""
    round_trip: bool
    """Whether it went through the bundled codec."""


@dataclass
class Window:
    """One training example."""

    samples: np.ndarray
    targets: list[int]
    """The text as codes."""
    places: list[int]
    """The frame of each of them."""


def make_utterance(clip: Clip, samples: np.ndarray, round_trip: bool) -> Utterance:
    """The clip at the aligner's rate."""
    wave = torch.from_numpy(samples.astype(np.float32))
    mono = torchaudio.functional.resample(wave / wave.abs().max().clamp_min(1e-6), SAMPLE_RATE, ASR_RATE)
    return Utterance(mono.numpy().astype(np.float16), written_words(clip.text, clip.words), round_trip)


def make_model() -> Wav2Vec2ForCTC:
    """The untrained model, 1.0 M parameters."""
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        conv_dim=(16, 32, 48, 64, 96, 128, 128),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        feat_extract_norm="group",
        hidden_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=432,
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        pad_token_id=CODE["<pad>"],
        bos_token_id=CODE["<s>"],
        eos_token_id=CODE["</s>"],
    )
    return Wav2Vec2ForCTC(config)


def place_letters(words: list[tuple[str, float, float]], num_frames: int) -> tuple[list[int], list[int]]:
    """The codes of a text and the frames they belong on.

    Args:
        words: Each word as written, with its start and end (s).
        num_frames: Frames of the window; places stay below it.

    Returns:
        Codes and frames, both of the same length, frames rising.
    """
    codes: list[int] = []
    places: list[int] = []
    rate = ASR_RATE / STRIDE
    for index, (word, start, end) in enumerate(words):
        letters = word.rstrip(".,").lower()
        first, last = start * rate, end * rate
        marks = [(letter, first + (last - first) * place / len(letters)) for place, letter in enumerate(letters)]
        pause = index + 1 == len(words) or words[index + 1][1] - end > 3 / rate
        marks += [(mark, last - (1 if pause else 2)) for mark in word[len(letters) :]]
        if index + 1 < len(words):
            marks.append(("|", last if pause else last - 1))
        codes += [CODE[mark] for mark, _ in marks]
        places += [int(place) for _, place in marks]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + 1)
    return codes, [min(place, num_frames - 1) for place in places]


class Windows:
    """Draws training windows from utterances."""

    def __init__(self, utterances: list[Utterance], seed: int) -> None:
        self.clean = [utterance for utterance in utterances if not utterance.round_trip]
        self.coded = [utterance for utterance in utterances if utterance.round_trip]
        self.rng = random.Random(seed)
        self.draw = np.random.default_rng(seed)

    def window(self, seconds: int, round_trip: float) -> Window:
        """Sentences with pauses, at any level, with noise.

        Args:
            seconds: Length of the window.
            round_trip: Share of the windows that take what went through the codec.
        """
        rng = self.rng
        wave = np.zeros(seconds * ASR_RATE, np.float32)
        words: list[tuple[str, float, float]] = []
        at = rng.randint(0, ASR_RATE // 2)
        pool = self.coded if self.coded and rng.random() < round_trip else self.clean
        while True:
            utterance = rng.choice(pool)
            if at + len(utterance.samples) > len(wave):
                if words or len(utterance.samples) > len(wave):
                    break
                at = 0
            wave[at : at + len(utterance.samples)] += utterance.samples * np.float32(rng.uniform(0.7, 1.0))
            words += [(word, at / ASR_RATE + start, at / ASR_RATE + end) for word, start, end in utterance.words]
            at += len(utterance.samples) + rng.randint(ASR_RATE // 5, ASR_RATE)
        if not words:
            return self.window(seconds, round_trip)
        noise = self.draw.standard_normal(len(wave)).astype(np.float32)
        if rng.random() < 0.5:
            noise[1:] = noise[1:] + rng.uniform(0.3, 0.95) * noise[:-1]
        wave += noise * np.sqrt((wave**2).mean() / (noise**2).mean()) * 10 ** (-rng.uniform(15, 50) / 20)
        if rng.random() < 0.5:
            tilt = rng.uniform(-0.5, 0.5)
            wave[1:] = wave[1:] + tilt * wave[:-1]
        wave *= np.exp(rng.uniform(np.log(0.2), 0.0)) / np.abs(wave).max()
        return Window(wave, *place_letters(words, (len(wave) - FIELD) // STRIDE + 1))

    def batch(self, size: int, seconds: int, round_trip: float) -> list[Window]:
        """Several windows of one length."""
        return [self.window(seconds, round_trip) for _ in range(size)]


def window_loss(model: Wav2Vec2ForCTC, windows: list[Window]) -> dict[str, Tensor]:
    """The losses of one batch by name; `total` is what is minimised."""
    samples = torch.from_numpy(np.stack([window.samples for window in windows]))
    log_probs = model(samples).logits.float().log_softmax(-1)
    places = torch.full(log_probs.shape[:2], CODE["<pad>"])
    for row, window in enumerate(windows):
        places[row, window.places] = torch.tensor(window.targets)
    weight = torch.ones(len(VOCABULARY))
    weight[CODE["<pad>"]] = 0.4
    frame = F.nll_loss(log_probs.flatten(0, 1), places.flatten(), weight)
    lengths = torch.tensor([len(window.targets) for window in windows])
    targets = torch.tensor([code for window in windows for code in window.targets])
    frames = torch.full((len(windows),), log_probs.shape[1])
    ctc = F.ctc_loss(log_probs.transpose(0, 1), targets, frames, lengths, zero_infinity=True)
    return {"total": frame + 0.3 * ctc, "frame": frame, "ctc": ctc}


def train(material: Path, work: Path, steps: int, seed: int, fresh_rate: float, num_round_trips: int) -> None:
    """Train from the checkpoint in `work`, if there is one, and leave a checkpoint every 200 steps.

    Args:
        material: Folder of the shared material, and of what the codec made of it if that is there.
        work: Holds `checkpoint.pt`.
        steps: How many; the learning rate falls to nothing over them.
        seed: Of the weights and of every draw.
        num_round_trips: How many sentences to learn from after the bundled codec, too.
        fresh_rate: Learning rate at the start.
    """
    torch.manual_seed(seed)
    utterances = load_utterances(material, num_round_trips)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=fresh_rate, weight_decay=0.01)
    done = 0
    if (work / "checkpoint.pt").exists():
        state = torch.load(work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    work.mkdir(parents=True, exist_ok=True)
    windows = Windows(utterances, seed + done)
    model.train()
    began = time.monotonic()
    for index in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = fresh_rate * min(1.0, (done + index + 1) / 150) * max(0.02, 1 - index / steps)
        short = done + index < 400
        batch = windows.batch(16 if short else 10, 3 if short else 6, 0.35)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = window_loss(model, batch)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (index + 1) % 25 == 0:
            shown = " ".join(f"{key} {value.item():.3f}" for key, value in losses.items())
            print(f"{done + index + 1} {time.monotonic() - began:.0f}s {shown}", flush=True)
        if (index + 1) % 200 == 0 or index == steps - 1:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done + index + 1}
            torch.save(state, work / "checkpoint.tmp")
            (work / "checkpoint.tmp").rename(work / "checkpoint.pt")


def load_utterances(material: Path, num_round_trips: int) -> list[Utterance]:
    """The shared material, and what the bundled codec makes of its first clips."""
    clips = load_material(material)
    utterances = [make_utterance(clip, clip.samples, round_trip=False) for clip in clips]
    if num_round_trips:
        waves = load_round_trips(material, clips, num_round_trips)
        utterances += [make_utterance(clip, wave, round_trip=True) for clip, wave in zip(clips, waves, strict=False)]
    return utterances


def export(work: Path, target: Path) -> None:
    """Write the checkpoint as a Hugging Face folder of half-precision weights, whole or not at all.

    Args:
        work: Holds `checkpoint.pt`.
        target: Model folder; its README.md is kept.
    """
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    vocabulary = building / "vocab.json"
    vocabulary.write_text(json.dumps(CODE))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=ASR_RATE, do_normalize=False, return_attention_mask=False)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(building)
    model = make_model()
    model.load_state_dict(torch.load(work / "checkpoint.pt", weights_only=True)["model"])
    model.half().save_pretrained(building)
    (building / "model.safetensors").chmod(0o644)
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", building)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "export"))
    parser.add_argument("--material", type=Path, default=Path("build/material"))
    parser.add_argument("--work", type=Path, default=Path("build/aligner"))
    parser.add_argument("--model", type=Path, default=Path("demo/models/aligner"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--codec", type=int, default=0, help="how many sentences to send through the bundled codec")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=2406)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.action == "train":
        train(arguments.material, arguments.work, arguments.steps, arguments.seed, arguments.rate, arguments.codec)
    else:
        export(arguments.work, arguments.model)


if __name__ == "__main__":
    main()
