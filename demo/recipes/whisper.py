"""Train the bundled Whisper: 1.7 M parameters over the demo's small language, in the form WhisperX loads.

    python -m demo.recipes.whisper train --work build/whisper
    python -m demo.recipes.whisper export --work build/whisper --model demo/models/whisper

Windows are put together from log-mel frames computed once a sentence. espeak-ng's word times skip the long plateau
that a Whisper trained from nothing goes through: the encoder starts by naming the letter that sounds in each frame, and
when the decoder joins its cross-attention is told where to look. `demo.recipes.asr_check` scores the result through the
real WhisperX.
"""

import argparse
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from demo.recipes.asr_material import MEL_RATE, Utterance, load_utterances, noise_power

WIDTH = 128
VOCABULARY = 512
LEARNING_RATE = 1.5e-3
START, NO_TIMES, END = "<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"
LETTERS = "_abcdefghijklmnopqrstuvwxyz"
"""What the auxiliary head of the encoder tells apart, frame by frame; `_` is silence."""


@dataclass(frozen=True)
class Phase:
    """A run of steps over windows of one kind."""

    name: str
    steps: int
    seconds: int
    """Longest speech in a window, s."""
    batch: int
    rates: tuple[float, float]
    """Learning rate at the first and the last step, as a share of `LEARNING_RATE`."""
    attention: bool
    """Train the decoder too, or the encoder alone."""
    guided: float
    """Weight of the loss that points cross-attention at the word being written."""
    full: float
    """Share of the steps on windows padded to 30 s, as WhisperX pads them."""
    round_trip: float
    """Share of the sentences that went through the bundled codec."""


PHASES = {
    phase.name: phase
    for phase in (
        Phase("encoder", 300, 4, 20, (1.0, 1.0), attention=False, guided=0.0, full=0.0, round_trip=0.0),
        Phase("guided", 500, 4, 20, (1.0, 1.0), attention=True, guided=0.3, full=0.0, round_trip=0.0),
        Phase("windows", 1400, 8, 10, (1.0, 1.0), attention=True, guided=0.05, full=0.06, round_trip=0.0),
        Phase("settle", 900, 8, 10, (0.8, 0.05), attention=True, guided=0.15, full=0.2, round_trip=0.0),
        Phase("codec", 300, 8, 10, (0.3, 0.02), attention=True, guided=0.1, full=0.3, round_trip=0.3),
    )
}


@dataclass
class Window:
    """One training example."""

    features: np.ndarray
    """Log-mel as Whisper scales it, [80, frames]."""
    tokens: list[int]
    spans: list[tuple[int, int] | None]
    """For each token the encoder frames where its word sounds; None where there is none."""
    letters: np.ndarray
    """The letter of each encoder frame."""


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens with Whisper's special tokens after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" " + text for text in texts], trainer)
    names = "endoftext startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps".split()
    special = [f"<|{name}|>" for name in names] + [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def make_model(tokenizer: Tokenizer) -> WhisperForConditionalGeneration:
    """The untrained model; three encoder layers, two decoder layers."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=WIDTH,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
        pad_token_id=end,
        bos_token_id=start,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = None
    model.generation_config.begin_suppress_tokens = None
    return model


class Windows:
    """Draws training windows from utterances."""

    def __init__(self, utterances: list[Utterance], tokenizer: Tokenizer, seed: int) -> None:
        self.clean = [utterance for utterance in utterances if not utterance.round_trip]
        self.coded = [utterance for utterance in utterances if utterance.round_trip]
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.draw = np.random.default_rng(seed)
        self.noise = noise_power(60.0, self.draw)

    def batch(self, phase: Phase) -> list[Window]:
        """One batch; all its windows have the same number of frames."""
        full = self.rng.random() < phase.full
        frames = (30 if full else phase.seconds) * MEL_RATE
        return [self.window(phase, frames) for _ in range(3 if full else phase.batch)]

    def window(self, phase: Phase, frames: int) -> Window:
        """Sentences with pauses, cut at random here and there, noisy, then silence up to `frames`."""
        rng = self.rng
        limit = phase.seconds * MEL_RATE
        power = np.zeros((frames, 80), np.float32)
        words: list[tuple[str, int, int]] = []
        at, loudness = rng.randint(0, 60), 1.0
        level = np.exp(rng.uniform(np.log(0.2), 0.0))
        pool = self.coded if self.coded and rng.random() < phase.round_trip else self.clean
        count = 0 if rng.random() < 0.02 else rng.choice((1, 2, 3, 4)) if limit > 500 else 1
        first = self._first_frame(rng)
        for _ in range(count):
            utterance = rng.choice(pool)
            skip = min(first, len(utterance.log_power) - 40) if first else 0
            first = 0
            mel = 10.0 ** utterance.log_power[skip:].astype(np.float32)
            fits = min(len(mel), limit - at)
            if fits < len(mel) and (fits < 60 or rng.random() < 0.7):
                break
            power[at : at + fits] += mel[:fits] * level**2 * rng.uniform(0.7, 1.2) ** 2
            words += [(text, at + start - skip, at + end - skip) for text, start, end in utterance.words]
            loudness = float(mel[:fits].mean())
            at += fits
            end_of_speech = at
            at += rng.randint(15, 90)
        if count and not words:
            return self.window(phase, frames)
        end = min(limit, end_of_speech + rng.randint(5, 60)) if words else rng.randint(40, limit)
        noise = self._noise(end) * loudness * level**2 * 10.0 ** (-rng.uniform(15, 48) / 10)
        power[:end] += noise
        return self._finish(power, words, min(end, limit))

    def _first_frame(self, rng: random.Random) -> int:
        """How much of the first sentence the window misses; mostly nothing."""
        return rng.randint(20, 150) if rng.random() < 0.12 else 0

    def _noise(self, frames: int) -> np.ndarray:
        """Mel power of coloured noise whose mean is 1."""
        start = self.rng.randint(0, len(self.noise) - frames)
        slope = 10.0 ** np.linspace(0, self.rng.uniform(-2.5, 0.5), 80, dtype=np.float32)
        noise = self.noise[start : start + frames] * slope
        return noise / noise.mean()

    def _finish(self, power: np.ndarray, words: list[tuple[str, int, int]], end: int) -> Window:
        kept = [(word, a, b) for word, a, b in words if a > -0.3 * (b - a) and b - 0.3 * (b - a) < end]
        text = "".join(" " + word for word, _, _ in kept)
        encoding = self.tokenizer.encode(text)
        owner = np.repeat(np.arange(len(kept)), [len(word) + 1 for word, _, _ in kept]) if kept else np.zeros(0, int)
        spans: list[tuple[int, int] | None] = []
        for left, _ in encoding.offsets:
            _, start, stop = kept[owner[min(left, len(owner) - 1)]]
            spans.append((max(start, 0) // 2, min(stop, end) // 2 + 2))
        tokens = [self.tokenizer.token_to_id(name) for name in (START, NO_TIMES)]
        tokens += [*encoding.ids, self.tokenizer.token_to_id(END)]
        letters = np.zeros(len(power) // 2, np.int64)
        for word, start, stop in kept:
            spelt = [LETTERS.index(letter) for letter in word.lower() if letter in LETTERS]
            edges = np.linspace(start, stop, len(spelt) + 1) / 2
            for letter, left, right in zip(spelt, edges[:-1], edges[1:], strict=True):
                letters[max(0, round(left)) : max(0, min(round(right), end // 2))] = letter
        return Window(self._features(power, end), tokens, [None, None, *spans, None], letters)

    def _features(self, power: np.ndarray, end: int) -> np.ndarray:
        rng = self.rng
        log = np.log10(np.maximum(power, 1e-10))
        if rng.random() < 0.7:
            knots = np.array([rng.gauss(0, 0.3) for _ in range(5)])
            log[:end] += np.interp(np.arange(80), np.linspace(0, 79, 5), knots).astype(np.float32)
        if rng.random() < 0.25:
            cut = rng.randint(60, 78)
            log[:end, cut:] -= np.float32(rng.uniform(1, 4))
        log = np.maximum(log, log.max() - 8.0)
        log = (log + 4.0) / 4.0
        if rng.random() < 0.5:
            for _ in range(2):
                start, low = rng.randint(0, end), rng.randint(0, 70)
                mean = log[:end].mean()
                log[start : min(start + rng.randint(1, 10), end)] = mean
                log[:end, low : low + rng.randint(1, 8)] = mean
        return log.T


def set_positions(model: WhisperForConditionalGeneration, positions: Tensor, frames: int) -> None:
    """Cut the encoder's sinusoidal positions to windows of `frames` encoder frames."""
    encoder = model.model.encoder
    model.config.max_source_positions = encoder.max_source_positions = frames
    encoder.embed_positions = nn.Embedding.from_pretrained(positions[:frames].clone(), freeze=True)


def guided_loss(attentions: tuple[Tensor, ...], spans: list[list[tuple[int, int] | None]]) -> Tensor:
    """How far half of the cross-attention heads look from the word that the next token belongs to.

    Args:
        attentions: One [b, h, s, t] a decoder layer.
        spans: For each window and each token, the frames of its word.
    """
    batch, heads, steps, frames = attentions[0].shape
    mask = torch.zeros(batch, steps, frames)
    for row, tokens in enumerate(spans):
        for step, span in enumerate(tokens[1:]):
            if span is not None:
                mask[row, step, span[0] : span[1]] = 1
    used = mask.sum(-1) > 0
    looked = torch.stack([layer[:, : heads // 2] for layer in attentions]).mean(dim=(0, 2))
    return -((looked * mask).sum(-1)[used] + 1e-4).log().mean()


def window_loss(
    model: WhisperForConditionalGeneration, head: nn.Linear, windows: list[Window], phase: Phase
) -> dict[str, Tensor]:
    """The losses of one batch by name; `total` is what is minimised."""
    features = torch.from_numpy(np.stack([window.features for window in windows]))
    hidden = model.model.encoder(features).last_hidden_state
    letters = torch.from_numpy(np.stack([window.letters for window in windows]))
    losses = {"letters": F.cross_entropy(head(hidden).float().flatten(0, 1), letters.flatten())}
    if not phase.attention:
        return {"total": losses["letters"], **losses}
    longest = max(len(window.tokens) for window in windows)
    pad = model.config.pad_token_id
    tokens = torch.tensor([window.tokens + [pad] * (longest - len(window.tokens)) for window in windows])
    targets = torch.full((len(windows), longest - 1), -100)
    for row, window in enumerate(windows):
        targets[row, 1 : len(window.tokens) - 1] = torch.tensor(window.tokens[2:])
    decoded = model.model.decoder(
        input_ids=tokens[:, :-1], encoder_hidden_states=hidden, output_attentions=phase.guided > 0, use_cache=False
    )
    logits = model.proj_out(decoded.last_hidden_state)
    losses["text"] = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
    total = losses["text"] + 0.5 * losses["letters"]
    if phase.guided > 0:
        losses["guide"] = guided_loss(decoded.cross_attentions, [window.spans for window in windows])
        total = total + phase.guided * losses["guide"]
    return {"total": total, **losses}


def train(work: Path, names: list[str], seed: int, steps: int | None, bfloat16: bool) -> None:
    """Run phases, from the checkpoint in `work` if there is one, and leave a checkpoint every 200 steps.

    Args:
        work: Holds `tokenizer.json`, `checkpoint.pt` and the cached material.
        names: Phases to run, in order.
        seed: Of the weights and of every draw.
        steps: Overrides the number of steps of each phase.
        bfloat16: Autocast; slower or faster, as the CPU has it.
    """
    torch.manual_seed(seed)
    utterances = load_utterances(work)
    path = work / "tokenizer.json"
    if not path.exists():
        make_tokenizer([utterance.text for utterance in utterances]).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    model, head = make_model(tokenizer), nn.Linear(WIDTH, len(LETTERS))
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.01)
    step = 0
    if (work / "checkpoint.pt").exists():
        state = torch.load(work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    positions = model.model.encoder.embed_positions.weight.data.clone()
    windows = Windows(utterances, tokenizer, seed + step)
    model.train()
    for name in names:
        phase, began = PHASES[name], time.monotonic()
        num_steps = steps or phase.steps
        model.set_attn_implementation("eager" if phase.guided > 0 else "sdpa")
        for index in range(num_steps):
            first, final = phase.rates
            rate = LEARNING_RATE * min(1.0, (step + 1) / 150) * (first + (final - first) * index / num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = windows.batch(phase)
            set_positions(model, positions, batch[0].features.shape[1] // 2)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                losses = window_loss(model, head, batch, phase)
            optimizer.zero_grad()
            losses["total"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 25 == 0:
                shown = " ".join(f"{key} {value.item():.3f}" for key, value in losses.items())
                print(f"{name} {step} {time.monotonic() - began:.0f}s {shown}", flush=True)
            if step % 200 == 0 or index == num_steps - 1:
                set_positions(model, positions, 1500)
                state = {"model": model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step}, work / "checkpoint.tmp")
                (work / "checkpoint.tmp").rename(work / "checkpoint.pt")


def export(work: Path, target: Path) -> None:
    """Write the checkpoint as an int8 CTranslate2 model, whole or not at all.

    Args:
        work: Holds `tokenizer.json` and `checkpoint.pt`.
        target: Model folder; its README.md is kept.
    """
    from ctranslate2.converters import TransformersConverter

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = make_model(tokenizer)
    model.load_state_dict(torch.load(work / "checkpoint.pt", weights_only=True)["model"])
    plain, building = work / "transformers", target.with_name(target.name + ".tmp")
    for folder in (plain, building):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(plain)
    WhisperFeatureExtractor().save_pretrained(plain)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(plain)
    converter = TransformersConverter(str(plain), copy_files=["tokenizer.json", "preprocessor_config.json"])
    target.parent.mkdir(parents=True, exist_ok=True)
    converter.convert(str(building), quantization="int8")
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", building)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "export"))
    parser.add_argument("--work", type=Path, default=Path("build/whisper"))
    parser.add_argument("--model", type=Path, default=Path("demo/models/whisper"))
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=2406)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.action == "train":
        train(arguments.work, arguments.phases, arguments.seed, arguments.steps, arguments.bfloat16)
    else:
        export(arguments.work, arguments.model)


if __name__ == "__main__":
    main()
