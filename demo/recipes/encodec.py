"""Train the bundled small EnCodec on one CPU core.

    python -m demo.recipes.encodec MATERIAL --real-speech FOLDER --state encodec.pt

First an autoencoder without a quantizer; then every codebook starts as k-means on the residuals the ones before it
leave, and the whole is tuned together. (With the quantizer on from the start, small batches collapse all codes.) There
is no discriminator. Started again with the same `--state` it goes on where it was. What the result is worth is
measured by `demo.recipes.encodec_check`.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from encodec.model import EncodecModel
from torch import Tensor

from demo.recipes.material import SAMPLE_RATE, load_material, load_real_speech
from valle2.codec import Architecture, build_encodec, save_encodec

HOP = 320
REAL_SHARE = 0.25
SHAPES = ((8, 38), (4, 76))
"""Batches as (segments, frames); both hold the same seconds."""
LEARNING_RATE = 5e-4
GAIN_SHARE = 0.01
"""Share of the rate for the last convolution's gain and bias: the gain is about 0.002, and Adam's full step would
change the loudness of everything by a quarter each time."""
CODEBOOK_DECAY = 0.997
FLOORS = ((0.4, 0.1), (0.1, 0.03))
"""Band magnitudes below the floor do not count; it sinks from the first to the second value, in either phase. With a
low floor from the start, the noise between the words drives the loss and nothing is learned."""
RESTART_EVERY = 1500
"""Steps between looks for dead codebook entries."""
RESTART_BELOW = 0.02
"""An entry is dead below this share of the mean usage."""


@dataclass
class Speech:
    """Draws training segments; levels, pauses and noise vary as in the demo's corpus."""

    synthetic: list[np.ndarray]
    real: list[np.ndarray]
    rng: np.random.Generator

    def segment(self, length: int) -> np.ndarray:
        """One segment of `length` samples, float32; it may start before or end after its utterance."""
        is_real = bool(self.real) and self.rng.random() < REAL_SHARE
        waves = self.real if is_real else self.synthetic
        wave = waves[int(self.rng.integers(len(waves)))]
        start = int(self.rng.integers(-length // 2, max(len(wave) - length // 2, 1 - length // 2)))
        cut = wave[max(start, 0) : start + length].astype(np.float32)
        peak = self.rng.uniform(0.3, 1.0) / max(float(np.abs(wave.astype(np.int32)).max()), 1.0)
        segment = np.zeros(length, np.float32)
        offset = max(-start, 0)
        segment[offset : offset + len(cut)] = cut * peak
        noise = self.rng.uniform(0.0, 1.4e-3) if not is_real else 1e-5
        return segment + self.rng.uniform(-noise, noise, length).astype(np.float32)

    def batch(self, num_segments: int, num_frames: int) -> Tensor:
        """Segments as [B, 1, N]."""
        return torch.from_numpy(np.stack([self.segment(num_frames * HOP) for _ in range(num_segments)]))[:, None]


class SpectralLoss(torch.nn.Module):
    """Distance of two waveforms, mostly between their log-mel spectra at several resolutions."""

    resolutions = ((256, 64, 20), (600, 240, 80), (1024, 256, 80), (2048, 512, 120))
    """Window, hop (samples) and mel bands; the second is what Whisper hears."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = FLOORS[0][0]
        for index, (window, _, bands) in enumerate(self.resolutions):
            top = 8000.0 if window == 600 else 12000.0
            bank = torchaudio.functional.melscale_fbanks(window // 2 + 1, 20.0, top, bands, SAMPLE_RATE)
            self.register_buffer(f"window{index}", torch.hann_window(window))
            self.register_buffer(f"bank{index}", bank)

    def magnitude(self, wave: Tensor, index: int) -> Tensor:
        """Magnitude spectra [B, F, T] of waves [B, N]."""
        size, hop, _ = self.resolutions[index]
        window = self.get_buffer(f"window{index}")
        spectrum = torch.view_as_real(torch.stft(wave, size, hop, window=window, return_complex=True))
        return (spectrum.square().sum(-1) + 1e-7).sqrt()

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Loss of `wave` against `target`, both [B, 1, N]."""
        total = 0.5 * F.l1_loss(wave, target)
        for index in range(len(self.resolutions)):
            with torch.no_grad():
                wanted = self.magnitude(target[:, 0], index)
            heard = self.magnitude(wave[:, 0], index)
            bank = self.get_buffer(f"bank{index}")
            floor = self.floor * (self.resolutions[index][0] / 256) ** 0.5
            log_wanted = (wanted.transpose(1, 2) @ bank + floor).log()
            log_heard = (heard.transpose(1, 2) @ bank + floor).log()
            total = total + F.l1_loss(log_heard, log_wanted)
            total = total + 0.5 * F.l1_loss((heard + 1e-2).sqrt(), (wanted + 1e-2).sqrt())
        return total


def kmeans(points: Tensor, num_clusters: int, num_rounds: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster `points` [N, D]; returns centres [C, D], cluster sizes [C] and each point's cluster [N]."""
    centres = points[torch.randperm(len(points))[:num_clusters]].clone()
    for _ in range(num_rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        lone = points[torch.randint(len(points), (num_clusters,))]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], lone)
    nearest = torch.cdist(points, centres).argmin(1)
    return centres, torch.bincount(nearest, minlength=num_clusters).float(), nearest


@torch.no_grad()
def level_layers(model: EncodecModel, batch: Tensor) -> None:
    """Scale every convolution so that `batch` [B, 1, N] keeps unit deviation through it.

    The package's initial weights let the signal fade on its way; training then spends its first thousand steps on that.
    """
    last: Any = model.decoder.model[-1]
    last = last.conv.conv

    def level(convolution: Any, _: object, output: Tensor) -> Tensor:
        wanted = 0.1 if convolution is last else 1.0
        scale = wanted / output.std()
        convolution.weight_g.mul_(scale)
        convolution.bias.mul_(scale)
        return output * scale

    convolutions = [module for module in model.modules() if hasattr(module, "weight_g")]
    hooks = [convolution.register_forward_hook(level) for convolution in convolutions]
    model.decoder(model.encoder(batch))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def embeddings(model: EncodecModel, speech: Speech, num_frames: int) -> Tensor:
    """About `num_frames` encoder outputs [N, D] of fresh speech."""
    found: list[Tensor] = []
    while sum(len(part) for part in found) < num_frames:
        outputs = model.encoder(speech.batch(*SHAPES[1]))
        found.append(outputs.transpose(1, 2).reshape(-1, outputs.shape[1]))
    return torch.cat(found)


@torch.no_grad()
def start_codebooks(model: EncodecModel, speech: Speech, usage: float) -> None:
    """Set every codebook to k-means centres of the residuals that reach it; `usage` is its mean entry count a step."""
    residual = embeddings(model, speech, 24_000)
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        centres, sizes, nearest = kmeans(residual, book.codebook_size)
        sizes = (sizes / sizes.mean() * usage).clamp_min(0.1 * usage)
        book.embed.copy_(centres)
        book.cluster_size.copy_(sizes)
        book.embed_avg.copy_(centres * sizes[:, None])
        book.inited.fill_(1.0)
        book.decay = CODEBOOK_DECAY
        residual = residual - centres[nearest]
        print(f"k-means residual std {residual.std():.4f}", flush=True)


@torch.no_grad()
def restart_dead_codes(model: EncodecModel, speech: Speech, usage: float) -> list[int]:
    """Move entries that hardly occur onto random residuals; returns how many in each codebook."""
    residual = embeddings(model, speech, 2500)
    moved: list[int] = []
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        dead = torch.nonzero(book.cluster_size < RESTART_BELOW * usage)[:, 0][: len(residual) // 8]
        fresh = residual[torch.randperm(len(residual))[: len(dead)]]
        book.embed[dead] = fresh
        book.cluster_size[dead] = 0.5 * usage
        book.embed_avg[dead] = fresh * 0.5 * usage
        residual = residual - book.dequantize(book.quantize(residual))
        moved.append(len(dead))
    return moved


def make_optimizer(model: EncodecModel) -> torch.optim.Optimizer:
    """AdamW with a slower group for the loudness of the output."""
    last: Any = model.decoder.model[-1]
    gain = [last.conv.conv.weight_g, last.conv.conv.bias]
    rest = [parameter for parameter in model.parameters() if all(parameter is not known for known in gain)]
    groups = [{"params": rest, "share": 1.0}, {"params": gain, "share": GAIN_SHARE}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.8, 0.99), weight_decay=0)


@dataclass
class State:
    """Everything a resumed training needs, beside the random draws."""

    model: EncodecModel
    optimizer: torch.optim.Optimizer
    file: Path
    quantizing: bool = False
    step: int = 0
    minutes: float = 0.0
    """Steps and wall-clock minutes of the present phase."""

    def save(self) -> None:
        """Write the file, whole or not at all."""
        building = self.file.with_suffix(".tmp")
        progress = {"quantizing": self.quantizing, "step": self.step, "minutes": self.minutes}
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(states | progress, building)
        building.replace(self.file)

    def load(self) -> None:
        """Go back to what the file holds."""
        stored = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        for layer in self.model.quantizer.vq.layers:
            layer._codebook.decay = CODEBOOK_DECAY
        self.quantizing, self.step, self.minutes = stored["quantizing"], stored["step"], stored["minutes"]


def take_step(state: State, loss_of: SpectralLoss, target: Tensor) -> tuple[float, float]:
    """One step on a batch [B, 1, N]; returns spectral loss and penalty."""
    model = state.model
    latent = model.encoder(target)
    penalty = 0.01 * latent.square().mean()
    if state.quantizing:
        result = model.quantizer(latent, model.frame_rate, model.bandwidth)
        latent, penalty = result.quantized, result.penalty
    loss = loss_of(model.decoder(latent), target)
    state.optimizer.zero_grad()
    (loss + penalty).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    state.optimizer.step()
    return loss.item(), penalty.item()


def train(state: State, speech: Speech, minutes: float, out: Path) -> None:
    """Train one phase to its end; the state file and, once there are codes, the weights follow every four minutes.

    Args:
        state: Trained in place.
        speech: Where batches come from.
        minutes: Wall-clock length of the phase; the rate rises over 100 steps, then falls in a straight line if the
            quantizer is on.
        out: Folder of the exported model.
    """
    loss_of = SpectralLoss()
    usage = SHAPES[0][0] * SHAPES[0][1] / state.model.quantizer.bins
    began, saved, running = time.monotonic() - 60 * state.minutes, time.monotonic(), 0.0
    state.model.train()
    while (progress := state.minutes / minutes) < 1:
        if state.quantizing and state.step % RESTART_EVERY == RESTART_EVERY - 1 and progress < 0.85:
            print(f"restarted {restart_dead_codes(state.model, speech, usage)}", flush=True)
        first, last = FLOORS[state.quantizing]
        loss_of.floor = first * (last / first) ** progress
        fall = max(0.03, 1 - progress) if state.quantizing else 1.0
        for group in state.optimizer.param_groups:
            group["lr"] = group["share"] * LEARNING_RATE * min(1.0, (state.step + 1) / 100) * fall
        loss, penalty = take_step(state, loss_of, speech.batch(*SHAPES[state.step % 2]))
        state.step += 1
        state.minutes = (time.monotonic() - began) / 60
        running += (loss - running) / min(state.step, 100)
        if state.step % 100 == 0:
            print(f"step {state.step} minute {state.minutes:.1f} loss {running:.3f} penalty {penalty:.3f}", flush=True)
        if time.monotonic() - saved > 4 * 60 or state.minutes >= minutes:
            saved = time.monotonic()
            state.save()
            if state.quantizing:
                save_encodec(state.model, Architecture(), out)


def main() -> None:
    """Read the command line and train both phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, help="folder of demo.recipes.material; rendered if empty")
    parser.add_argument("--real-speech", type=Path, help="folder of FLAC files to mix in")
    parser.add_argument("--out", type=Path, default=Path("demo/models/encodec"))
    parser.add_argument("--state", type=Path, default=Path("encodec-training.pt"), help="to resume from")
    parser.add_argument("--autoencoder-minutes", type=float, default=15)
    parser.add_argument("--minutes", type=float, default=45, help="with the quantizer on")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    synthetic = [clip.samples for clip in load_material(arguments.material)]
    real = load_real_speech(arguments.real_speech) if arguments.real_speech else []
    speech = Speech(synthetic, real, np.random.default_rng(arguments.seed))
    model = build_encodec(Architecture())
    state = State(model, make_optimizer(model), arguments.state)
    if state.file.exists():
        state.load()
    else:
        level_layers(model, speech.batch(*SHAPES[1]))
    if not state.quantizing:
        train(state, speech, arguments.autoencoder_minutes, arguments.out)
        start_codebooks(model, speech, SHAPES[0][0] * SHAPES[0][1] / model.quantizer.bins)
        state.quantizing, state.step, state.minutes = True, 0, 0.0
        state.optimizer.state.clear()
        state.save()
    train(state, speech, arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
