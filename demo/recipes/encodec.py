"""Train the bundled small EnCodec on one or two CPU cores, phase after phase.

    python -m demo.recipes.encodec envelope MATERIAL --real-speech FOLDER
    python -m demo.recipes.encodec pitch MATERIAL --real-speech FOLDER
    python -m demo.recipes.encodec codes MATERIAL --real-speech FOLDER
    python -m demo.recipes.encodec decoder MATERIAL --real-speech FOLDER

1. `envelope`: an autoencoder without a quantizer learns spectra, which do not depend on phase. Its voice has no pitch
   but the frame rate: no gradient of a magnitude moves a harmonic from one frequency to another.
2. `pitch`: the energy of the difference to the recording below about 1 kHz is added to the loss. Now the latent tells
   where in a period of the voice a frame begins, and the decoder learns to go on from there.
3. `codes`: every codebook starts as k-means on the residuals that the ones before it leave, and the whole is tuned
   together; some steps see the first codebooks alone, as in EnCodec's training (Defossez et al., 2022, section 3.4),
   so that the first carries most. (With the quantizer on from the start, small batches collapse all codes.)
4. `decoder`: encoder and codebooks stay as they are, and so do the codes; the decoder alone improves.

There is no discriminator. A phase goes on from the state file, where the phase before it or an interrupted run of its
own has left it. What the result is worth is measured by `demo.recipes.encodec_check`.
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
from torch import Tensor, nn

from demo.recipes.material import SAMPLE_RATE, load_material, load_real_speech
from valle2.codec import Architecture, build_encodec, save_encodec

HOP = 320
REAL_SHARE = 0.25
SHAPES = ((8, 38), (4, 76))
"""Batches as (segments, frames); both hold the same seconds."""
GAIN_SHARE = 0.01
"""Share of the rate for the last convolution's gain and bias: the gain is about 0.002, and Adam's full step would
change the loudness of everything by a quarter each time."""
CODEBOOK_DECAY = 0.997
BANDWIDTHS = (6.0, 6.0, 6.0, 6.0, 0.75)
"""Drawn from in the phase `codes` (kbps; 0.75 is one codebook)."""
RESTART_EVERY = 1500
"""Steps between looks for dead codebook entries."""
RESTART_BELOW = 0.02
"""An entry is dead below this share of the mean usage."""


@dataclass(frozen=True)
class Phase:
    """One part of the training."""

    minutes: float
    """Wall-clock length, unless the command line says another."""
    rate: tuple[float, float]
    """Adam's rate at the start, after 100 steps of warm-up, and at the end; straight between them."""
    floor: tuple[float, float]
    """Band magnitudes below it do not count; it sinks over the phase. With a low floor from the start, the noise
    between the words drives the loss and nothing is learned."""
    spectra: float
    """Weight of the magnitudes."""
    anchor: float
    """Weight of the waveform's low band."""


PHASES = {
    "envelope": Phase(30, (7e-4, 7e-4), (0.4, 0.1), 1.0, 0.0),
    "pitch": Phase(15, (4e-4, 4e-4), (0.1, 0.1), 0.3, 3.0),
    "codes": Phase(10, (4e-4, 1e-4), (0.1, 0.1), 1.0, 1.0),
    "decoder": Phase(40, (7e-4, 2e-5), (0.05, 0.03), 1.0, 0.5),
}


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


class SpectralLoss(nn.Module):
    """Distance of two waveforms: between magnitude spectra, and between the waveforms' low bands.

    Attributes:
        spectra: Weight of the magnitudes.
        anchor: Weight of the low bands.
        floor: Band magnitudes below it do not count; scaled with the window.
    """

    mel = ((256, 64, 20), (600, 240, 80), (1024, 256, 80))
    """Window, hop (samples) and mel bands; the second is what Whisper hears."""
    linear = ((512, 128), (1024, 256), (2048, 512))
    """Window and hop of the spectra whose lines count one by one: the longer ones tell harmonics apart."""
    top = 6000.0
    """Highest line, Hz."""

    def __init__(self, spectra: float = 1.0, anchor: float = 0.0, floor: float = 0.4) -> None:
        super().__init__()
        self.spectra, self.anchor, self.floor = spectra, anchor, floor
        for window, _, bands in self.mel:
            top = 8000.0 if window == 600 else 12000.0
            bank = torchaudio.functional.melscale_fbanks(window // 2 + 1, 20.0, top, bands, SAMPLE_RATE)
            self.register_buffer(f"bank{window}", bank)
        self.hops = {window: hop for window, hop, *_ in (*self.mel, *self.linear)}
        for window in self.hops:
            self.register_buffer(f"window{window}", torch.hann_window(window))

    def spectrum(self, wave: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """Complex spectra [B, F, T, 2] and their magnitudes [B, F, T] of waves [B, 1, N]."""
        shape = self.get_buffer(f"window{window}")
        complex_spectrum = torch.stft(wave[:, 0], window, self.hops[window], window=shape, return_complex=True)
        parts = torch.view_as_real(complex_spectrum)
        return parts, (parts.square().sum(-1) + 1e-7).sqrt()

    def forward(self, wave: Tensor, target: Tensor) -> Tensor:
        """Loss of `wave` against `target`, both [B, 1, N]."""
        heard = {window: self.spectrum(wave, window) for window in self.hops}
        with torch.no_grad():
            wanted = {window: self.spectrum(target, window) for window in self.hops}
        total = wave.new_zeros(())
        for window, _, _ in self.mel:
            bank, floor = self.get_buffer(f"bank{window}"), self.floor * (window / 256) ** 0.5
            bands = [(pair[window][1].transpose(1, 2) @ bank + floor).log() for pair in (heard, wanted)]
            total = total + self.spectra * F.l1_loss(bands[0], bands[1])
        for window, _ in self.linear:
            ours, theirs, floor = heard[window][1], wanted[window][1], 3 * self.floor * (window / 256) ** 0.5
            lines = int(self.top / SAMPLE_RATE * window)
            total = total + self.spectra * F.l1_loss((ours[:, :lines] + floor).log(), (theirs[:, :lines] + floor).log())
            total = total + 0.5 * self.spectra * F.l1_loss((ours + 1e-2).sqrt(), (theirs + 1e-2).sqrt())
        for window in (512, 1024):
            lines = int(4000 / SAMPLE_RATE * window)
            frequency = torch.arange(lines, device=wave.device) * (SAMPLE_RATE / window)
            weight = (1 / (1 + (frequency / 700) ** 2) + 0.1)[:, None, None]
            error = (heard[window][0] - wanted[window][0])[:, :lines].square() * weight
            energy = wanted[window][0][:, :lines].square() * weight
            total = total + self.anchor * error.mean() / (energy.mean() + 1e-3)
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
    residual = embeddings(model, speech, 60_000)
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
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.8, 0.99), weight_decay=0)


@dataclass
class State:
    """Everything a resumed training needs, beside the random draws."""

    model: EncodecModel
    optimizer: torch.optim.Optimizer
    file: Path
    phase: str
    step: int = 0
    minutes: float = 0.0
    """Steps and wall-clock minutes of the present phase."""

    def save(self) -> None:
        """Write the file, whole or not at all."""
        building = self.file.with_suffix(".tmp")
        progress = {"phase": self.phase, "step": self.step, "minutes": self.minutes}
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(states | progress, building)
        building.replace(self.file)

    def load(self) -> str:
        """Go back to what the file holds; of another phase than ours, only the weights. Returns that phase."""
        stored = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(stored["model"])
        for layer in self.model.quantizer.vq.layers:
            layer._codebook.decay = CODEBOOK_DECAY
        if stored["phase"] == self.phase:
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step, self.minutes = stored["step"], stored["minutes"]
        found: str = stored["phase"]
        return found


def take_step(state: State, loss_of: SpectralLoss, target: Tensor) -> tuple[float, float]:
    """One step on a batch [B, 1, N]; returns spectral loss and penalty."""
    model = state.model
    if state.phase == "decoder":
        with torch.no_grad():
            latent = model.quantizer(model.encoder(target), model.frame_rate, model.bandwidth).quantized
        penalty = latent.new_zeros(())
    elif state.phase == "codes":
        bandwidth = BANDWIDTHS[int(torch.randint(len(BANDWIDTHS), ()))]
        result = model.quantizer(model.encoder(target), model.frame_rate, bandwidth)
        latent, penalty = result.quantized, result.penalty
    else:
        latent = model.encoder(target)
        penalty = 0.01 * latent.square().mean()
    loss = loss_of(model.decoder(latent), target)
    state.optimizer.zero_grad()
    (loss + penalty).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    state.optimizer.step()
    return loss.item(), penalty.item()


def train(state: State, speech: Speech, minutes: float, out: Path) -> None:
    """Train a phase to its end; the state file and, once there are codes, the weights follow every two minutes.

    Args:
        state: Trained in place.
        speech: Where batches come from.
        minutes: Wall-clock length of the phase.
        out: Folder of the exported model.
    """
    phase, model = PHASES[state.phase], state.model
    loss_of = SpectralLoss(phase.spectra, phase.anchor)
    usage = SHAPES[0][0] * SHAPES[0][1] / model.quantizer.bins
    began, saved, running = time.monotonic() - 60 * state.minutes, time.monotonic(), 0.0
    model.train()
    if state.phase == "decoder":
        model.encoder.requires_grad_(False)
        model.quantizer.eval()
    while (progress := state.minutes / minutes) < 1:
        if state.phase == "codes" and state.step % RESTART_EVERY == RESTART_EVERY - 1 and progress < 0.85:
            print(f"restarted {restart_dead_codes(model, speech, usage)}", flush=True)
        loss_of.floor = phase.floor[0] * (phase.floor[1] / phase.floor[0]) ** progress
        rate = min(1.0, (state.step + 1) / 100) * (phase.rate[0] + (phase.rate[1] - phase.rate[0]) * progress)
        for group in state.optimizer.param_groups:
            group["lr"] = group["share"] * rate
        loss, penalty = take_step(state, loss_of, speech.batch(*SHAPES[state.step % 2]))
        state.step += 1
        state.minutes = (time.monotonic() - began) / 60
        running += (loss - running) / min(state.step, 100)
        if state.step % 100 == 0:
            print(f"step {state.step} minute {state.minutes:.1f} loss {running:.3f} penalty {penalty:.3f}", flush=True)
        if time.monotonic() - saved > 2 * 60 or state.minutes >= minutes:
            saved = time.monotonic()
            state.save()
            if state.phase in ("codes", "decoder"):
                save_encodec(model, Architecture(), out)


def main() -> None:
    """Read the command line and train one phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("material", type=Path, help="folder of demo.recipes.material; rendered if empty")
    parser.add_argument("--real-speech", type=Path, help="folder of FLAC files to mix in")
    parser.add_argument("--out", type=Path, default=Path("demo/models/encodec"))
    parser.add_argument("--state", type=Path, default=Path("encodec-training.pt"), help="to go on from")
    parser.add_argument("--minutes", type=float, help="length of the phase")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    synthetic = [clip.samples for clip in load_material(arguments.material)]
    real = load_real_speech(arguments.real_speech) if arguments.real_speech else []
    speech = Speech(synthetic, real, np.random.default_rng(arguments.seed))
    model = build_encodec(Architecture())
    state = State(model, make_optimizer(model), arguments.state, arguments.phase)
    before = state.load() if state.file.exists() else None
    if before is None:
        level_layers(model, speech.batch(*SHAPES[1]))
    if arguments.phase == "codes" and before != "codes":
        start_codebooks(model, speech, SHAPES[0][0] * SHAPES[0][1] / model.quantizer.bins)
    train(state, speech, arguments.minutes or PHASES[arguments.phase].minutes, arguments.out)


if __name__ == "__main__":
    main()
