"""Train the bundled small EnCodec on one CPU core, phase after phase.

    python -m demo.recipes.encodec encoder MATERIAL --real-speech FOLDER
    python -m demo.recipes.encodec codes MATERIAL --real-speech FOLDER
    python -m demo.recipes.encodec decoder MATERIAL --real-speech FOLDER

A codec that is trained whole spends most of its time on the waveform, and its encoder learns through a decoder that
does not understand it yet. Here the encoder learns first, and alone.

1. `encoder`: a small network behind the latent has to tell each frame's mel spectra, the lines below 1.5 kHz (which
   hold the pitch) and the complex spectrum below 1.1 kHz, which says where in a period of the voice the frame begins.
   Without that last part a decoder cannot continue a period from frame to frame: the voice hums at the frame rate. A
   linear layer has to tell the phone, as espeak-ng itself reports it.
2. `codes`: the latent is stretched along what tells phones, and phases, so that the first codebook says what is
   spoken: an autoregressive model reads and writes nothing else (a distillation after Zhang et al., SpeechTokenizer,
   2023, section 3.2, with phones for teacher). Then every codebook starts as k-means on the residuals that the ones
   before it leave, and encoder and codebooks are tuned together with the same targets; some steps see the first
   codebook alone, as in EnCodec's training (Defossez et al., 2022, section 3.2), so that it carries most. (With the
   quantizer on from the start, small batches collapse all codes.)
3. `decoder`: encoder and codebooks stay as they are, and so do the codes; the decoder learns the waveform. With
   `--predicted`, every other batch has the codes that a voice model predicts (`demo.recipes.predicted`); there only
   magnitudes are compared, since such codes do not say where in a period of the voice a frame begins.

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

from demo.recipes.material import SAMPLE_RATE, Clip, load_material, load_real_speech
from demo.recipes.predicted import Predicted, load_predicted
from valle2.codec import Architecture, build_encodec, load_codec, save_encodec

HOP = 320
REAL_SHARE = 0.25
UNKNOWN = -100
"""No phone is known; cross-entropy leaves it out."""
CONTENT_WEIGHT = 0.5
"""Of the phones' cross-entropy; where the first codebook is alone, FIRST_CONTENT_WEIGHT."""
FIRST_CONTENT_WEIGHT = 2.0
CONTENT_SHARE, PHASE_SHARE = 1.0, 0.5
"""How far the latent is stretched along what tells phones and phases: variance that is added, over what is there."""
SHAPES = ((8, 50), (5, 80))
"""Batches as (segments, frames); both hold the same seconds."""
NUM_FRAMES = SHAPES[0][0] * SHAPES[0][1]
GAIN_SHARE = 0.01
"""Share of the rate for the decoder's last convolution's gain and bias: the gain is about 0.002, and Adam's full step
would change the loudness of everything by a quarter each time."""
LATENT_STD = 1.2
"""Standard deviation of the latent when the quantizer comes in; the commitment loss is made for about 1."""
CODEBOOK_DECAY = 0.997
BANDWIDTHS = (6.0, 6.0, 6.0, 0.75, 0.75)
"""Drawn from in the phase `codes` (kbps; 0.75 is one codebook)."""
RESTART_EVERY = 1500
"""Steps between looks for dead codebook entries."""
RESTART_BELOW = 0.02
"""An entry is dead below this share of the mean usage."""


@dataclass(frozen=True)
class Phase:
    """One part of the training: wall-clock minutes, and Adam's rate at the start (after 100 steps) and at the end."""

    minutes: float
    rate: tuple[float, float]


PHASES = {
    "encoder": Phase(8, (2.5e-3, 7e-4)),
    "codes": Phase(5, (1.25e-3, 1.25e-4)),
    "decoder": Phase(40, (7e-4, 2e-5)),
}


@dataclass
class Speech:
    """Draws training segments; levels, pauses and noise vary as in the demo's corpus."""

    synthetic: list[Clip]
    real: list[np.ndarray]
    rng: np.random.Generator

    def __post_init__(self) -> None:
        names = sorted({name for clip in self.synthetic for name, _ in clip.phones} | {""})
        self.num_phones = len(names)
        self._starts = [np.array([start for _, start in clip.phones]) * SAMPLE_RATE for clip in self.synthetic]
        self._phones = [np.array([0, *(names.index(name) for name, _ in clip.phones)]) for clip in self.synthetic]

    def segment(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One segment of `length` samples, float32; it may start before or end after its utterance.

        With it the phone at the middle of each frame: 0 is a pause, `UNKNOWN` anything in real speech.
        """
        is_real = bool(self.real) and self.rng.random() < REAL_SHARE
        chosen = int(self.rng.integers(len(self.real if is_real else self.synthetic)))
        wave = self.real[chosen] if is_real else self.synthetic[chosen].samples
        start = int(self.rng.integers(-length // 2, max(len(wave) - length // 2, 1 - length // 2)))
        cut = wave[max(start, 0) : start + length].astype(np.float32)
        peak = self.rng.uniform(0.3, 1.0) / max(float(np.abs(wave.astype(np.int32)).max()), 1.0)
        segment = np.zeros(length, np.float32)
        offset = max(-start, 0)
        segment[offset : offset + len(cut)] = cut * peak
        noise = self.rng.uniform(0.0, 1.4e-3) if not is_real else 1e-5
        segment += self.rng.uniform(-noise, noise, length).astype(np.float32)
        middles = start + HOP // 2 + HOP * np.arange(length // HOP)
        if is_real:
            return segment, np.full(len(middles), UNKNOWN)
        phones = self._phones[chosen][np.searchsorted(self._starts[chosen], middles, side="right")]
        return segment, np.where(middles < len(wave), phones, 0)

    def batch(self, num_segments: int, num_frames: int) -> tuple[Tensor, Tensor]:
        """Segments as [B, 1, N] and their phones [B, T]."""
        waves, phones = zip(*(self.segment(num_frames * HOP) for _ in range(num_segments)), strict=True)
        return torch.from_numpy(np.stack(waves))[:, None], torch.from_numpy(np.stack(phones))


def predicted_batch(
    items: list[Predicted], num_segments: int, num_frames: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Codes [8, B, T] that a voice model gave to segments of speech, and the segments [B, 1, N]."""
    codes, waves = [], []
    for chosen in rng.integers(len(items), size=num_segments):
        item = items[chosen]
        start = int(rng.integers(max(item.codes.shape[1] - num_frames, 0) + 1))
        padding = max(num_frames - item.codes.shape[1], 0)
        # Where an utterance is too short its last frame goes on in silence, which no loss hears.
        codes.append(np.pad(item.codes[:, start : start + num_frames], ((0, 0), (0, padding)), mode="edge"))
        cut = item.samples[start * HOP : (start + num_frames) * HOP].astype(np.float32) / 32767
        waves.append(np.pad(cut, (0, padding * HOP)))
    stacked = torch.from_numpy(np.stack(codes).astype(np.int64)).transpose(0, 1)
    return stacked, torch.from_numpy(np.stack(waves))[:, None]


class FrameTargets(nn.Module):
    """What an encoder should know of each frame: spectra of windows that end with it, since the encoder is causal."""

    sizes = (80, 48, 64, 48)
    weights = (1.0, 0.5, 0.7, 0.7)

    def __init__(self, num_phones: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, sum(self.sizes)))
        self.content = nn.Linear(128, num_phones)
        banks = {600: (80, 8000.0), 256: (24, 12000.0)}
        for window, (bands, top) in banks.items():
            bank = torchaudio.functional.melscale_fbanks(window // 2 + 1, 20.0, top, bands, SAMPLE_RATE)
            self.register_buffer(f"bank{window}", bank)

    def spectrum(self, wave: Tensor, window: int, before: int = 0) -> Tensor:
        """Complex spectra [B, T, F] of windows of waves [B, 1, N] that end `before` samples before each frame's end."""
        padded = F.pad(wave[:, 0], (window - HOP + before, 0))[:, : wave.shape[-1] + window - HOP]
        return torch.fft.rfft(padded.unfold(-1, window, HOP) * torch.hann_window(window))

    @torch.no_grad()
    def targets(self, wave: Tensor) -> list[Tensor]:
        """Log-mel bands, those of short windows, log lines below 1.5 kHz, complex ones below 1.1 kHz: [B, T, D]."""
        mel = (self.spectrum(wave, 600).abs() @ self.get_buffer("bank600") + 0.1).log()
        short = torch.cat([self.spectrum(wave, 256, before).abs() for before in (0, HOP // 2)], 0)
        short = torch.cat((short @ self.get_buffer("bank256") + 0.065).log().chunk(2), -1)
        lines = (self.spectrum(wave, 1024).abs()[..., :64] + 0.6).log()
        low = self.spectrum(wave, 512)[..., :24]
        phases = torch.view_as_real(low) / (low.abs()[..., None] + 1e-2).sqrt()
        return [mel, short, lines, phases.flatten(-2)]

    def forward(self, latent: Tensor, wave: Tensor, phones: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of a latent [B, 128, T] of waves [B, 1, N] with phones [B, T]: of the spectra, and of the phones."""
        frames = latent.transpose(1, 2)
        told = self.hidden(frames).split(self.sizes, -1)
        parts = zip(self.weights, told, self.targets(wave), strict=True)
        spectra = sum((weight * F.l1_loss(said, true) for weight, said, true in parts), latent.new_zeros(()))
        content = F.cross_entropy(self.content(frames).flatten(0, 1), phones.flatten(), reduction="sum")
        return spectra, content / (phones != UNKNOWN).sum().clamp(min=1)


class SpectralLoss(nn.Module):
    """Distance of two waveforms: between magnitude spectra, and between the waveforms' low bands."""

    mel = ((256, 64, 20), (600, 240, 80), (1024, 256, 80))
    """Window, hop (samples) and mel bands; the second is what Whisper hears."""
    linear = ((512, 128), (1024, 256), (2048, 512))
    """Window and hop of the spectra whose lines count one by one: the longer ones tell harmonics apart."""
    top = 6000.0
    """Highest line, Hz."""
    floor = 0.04
    """Magnitudes below it do not count; scaled with the window."""
    anchor = 0.5
    """Weight of the low bands."""
    convergence = 0.5
    """Weight of the spectral convergence (Arik et al., 2018, section 3): unlike the logarithms it counts what is loud,
    as a speaker encoder that reads power spectra does."""
    level = 6.0
    """Weight of the mean power of mel bands over `pool` frames. Logarithms of single lines and frames draw what is not
    certain to its median, which is too quiet: without it, 2-5 kHz came out 5 to 10 dB too low, and voices alike."""
    pool = (8, 4)
    """Frames that a mean is over, and frames from one to the next."""
    level_floor = 1e-3
    """Power below it does not count."""

    def __init__(self) -> None:
        super().__init__()
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

    def levels(self, magnitudes: Tensor) -> Tensor:
        """Mean power of mel bands over time [B, 80, T / 4] of magnitudes [B, F, T] of the window of 600."""
        power = magnitudes.square().transpose(1, 2) @ self.get_buffer("bank600")
        return F.avg_pool1d(power.transpose(1, 2), *self.pool)

    def forward(self, wave: Tensor, target: Tensor, *, phases: bool = True) -> Tensor:
        """Loss of `wave` against `target`, both [B, 1, N]; without `phases`, of magnitudes alone."""
        heard = {window: self.spectrum(wave, window) for window in self.hops}
        with torch.no_grad():
            wanted = {window: self.spectrum(target, window) for window in self.hops}
        total = wave.new_zeros(())
        for window, _, _ in self.mel:
            bank, floor = self.get_buffer(f"bank{window}"), self.floor * (window / 256) ** 0.5
            bands = [(pair[window][1].transpose(1, 2) @ bank + floor).log() for pair in (heard, wanted)]
            total = total + F.l1_loss(bands[0], bands[1])
        levels = [(self.levels(pair[600][1]) + self.level_floor).log() for pair in (heard, wanted)]
        total = total + self.level * F.l1_loss(levels[0], levels[1])
        for window, _ in self.linear:
            ours, theirs, floor = heard[window][1], wanted[window][1], 3 * self.floor * (window / 256) ** 0.5
            lines = int(self.top / SAMPLE_RATE * window)
            total = total + F.l1_loss((ours[:, :lines] + floor).log(), (theirs[:, :lines] + floor).log())
            total = total + 0.5 * F.l1_loss((ours + 1e-2).sqrt(), (theirs + 1e-2).sqrt())
            total = total + self.convergence * (ours - theirs).norm() / (theirs.norm() + 1)
        for window in (512, 1024) if phases else ():
            lines = int(4000 / SAMPLE_RATE * window)
            frequency = torch.arange(lines, device=wave.device) * (SAMPLE_RATE / window)
            weight = (1 / (1 + (frequency / 700) ** 2))[:, None, None]
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
        outputs = model.encoder(speech.batch(*SHAPES[1])[0])
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


@torch.no_grad()
def stretch_latent(training: "Training", speech: Speech) -> None:
    """Make phones, and then phases, what the first codebook sees, and bring the latent to `LATENT_STD`.

    The latent x becomes A x. A^T A = 1 + b W W^T + c V V^T, where x W tells phones and x V phases (least squares), so
    near latents are alike as before, and alike in both. What reads the latent is turned back by the inverse of A.
    """
    last: Any = training.codec.encoder.model[-1]
    first: Any = training.codec.decoder.model[0]
    latents, phases = [], []
    for _ in range(100):
        wave, _ = speech.batch(*SHAPES[1])
        latents.append(training.codec.encoder(wave).transpose(1, 2).flatten(0, 1))
        phases.append(training.targets.targets(wave)[-1].flatten(0, 1))
    latent, phase = torch.cat(latents), torch.cat(phases)
    covariance = torch.cov(latent.T)
    tells_phones = training.targets.content.weight.T
    tells_phones = tells_phones - tells_phones.mean(1, keepdim=True)
    tells_phases = torch.linalg.lstsq(latent - latent.mean(0), phase - phase.mean(0)).solution
    metric = torch.eye(len(covariance))
    for share, tells in ((CONTENT_SHARE, tells_phones), (PHASE_SHARE, tells_phases)):
        square = tells @ tells.T
        metric += share * covariance.trace() / (square @ covariance).trace() * square
    values, vectors = torch.linalg.eigh(metric)
    stretch = (vectors * values.sqrt()) @ vectors.T
    stretch *= LATENT_STD / (latent @ stretch).var(0).mean().sqrt()
    back = torch.linalg.inv(stretch)
    set_weight(last.conv.conv, torch.einsum("ij,jkl->ikl", stretch, last.conv.conv.weight))
    last.conv.conv.bias.copy_(stretch @ last.conv.conv.bias)
    set_weight(first.conv.conv, torch.einsum("ijk,jl->ilk", first.conv.conv.weight, back))
    heads: list[Any] = [training.targets.hidden[0], training.targets.content]
    for head in heads:
        head.weight.copy_(head.weight @ back)


def set_weight(convolution: Any, weight: Tensor) -> None:
    """Give a weight-normed convolution another weight."""
    convolution.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
    convolution.weight_v.copy_(weight)


class Training:
    """Everything that a phase trains, and what a resumed one needs beside the random draws."""

    def __init__(self, phase: str, file: Path, num_phones: int) -> None:
        self.phase, self.file = phase, file
        self.codec, self.targets, self.waves = build_encodec(Architecture()), FrameTargets(num_phones), SpectralLoss()
        self.step, self.minutes = 0, 0.0
        last: Any = self.codec.decoder.model[-1]
        gain = [last.conv.conv.weight_g, last.conv.conv.bias]
        decoder = [one for one in self.codec.decoder.parameters() if all(one is not known for known in gain)]
        learning = [*self.codec.encoder.parameters(), *self.targets.parameters()]
        groups = [{"params": decoder, "share": 1.0}, {"params": gain, "share": GAIN_SHARE}]
        groups = groups if phase == "decoder" else [{"params": learning, "share": 1.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.8, 0.99), weight_decay=0)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        building = self.file.with_suffix(".tmp")
        progress = {"phase": self.phase, "step": self.step, "minutes": self.minutes}
        states = {name: getattr(self, name).state_dict() for name in ("codec", "targets", "optimizer")}
        torch.save(states | progress, building)
        building.replace(self.file)

    def load(self) -> str:
        """Go back to what the file holds; of another phase than ours, only the weights. Returns that phase."""
        stored = torch.load(self.file, weights_only=True)
        self.codec.load_state_dict(stored["codec"])
        self.targets.load_state_dict(stored["targets"])
        for layer in self.codec.quantizer.vq.layers:
            layer._codebook.decay = CODEBOOK_DECAY
        if stored["phase"] == self.phase:
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step, self.minutes = stored["step"], stored["minutes"]
        found: str = stored["phase"]
        return found

    def loss(self, wave: Tensor, phones: Tensor) -> dict[str, Tensor]:
        """Losses of a batch of waves [B, 1, N] with phones [B, T]; their sum is minimised."""
        codec = self.codec
        if self.phase == "decoder":
            with torch.no_grad():
                latent = codec.quantizer(codec.encoder(wave), codec.frame_rate, codec.bandwidth).quantized
            return {"waves": self.waves(codec.decoder(latent), wave)}
        latent = codec.encoder(wave)
        penalty = 0.003 * latent.square().mean()
        alone = False
        if self.phase == "codes":
            bandwidth = BANDWIDTHS[int(torch.randint(len(BANDWIDTHS), ()))]
            result = codec.quantizer(latent, codec.frame_rate, bandwidth)
            latent, penalty, alone = result.quantized, result.penalty, bandwidth < max(BANDWIDTHS)
        spectra, content = self.targets(latent, wave, phones)
        content = content * (FIRST_CONTENT_WEIGHT if alone else CONTENT_WEIGHT)
        name = "first_" if alone else ""
        return {f"{name}spectra": spectra, f"{name}content": content, "penalty": penalty}

    def predicted_loss(self, codes: Tensor, wave: Tensor) -> dict[str, Tensor]:
        """Loss of decoded codes [8, B, T] against the waves [B, 1, N] that they stand for."""
        with torch.no_grad():
            latent = self.codec.quantizer.decode(codes)
        return {"predicted": self.waves(self.codec.decoder(latent), wave, phases=False)}

    def take_step(self, losses: dict[str, Tensor], rate: float) -> dict[str, float]:
        """One step on the sum of losses; returns them."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * rate
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_([one for group in self.optimizer.param_groups for one in group["params"]], 1.0)
        self.optimizer.step()
        self.step += 1
        return {name: value.item() for name, value in losses.items()}


def train(training: Training, speech: Speech, minutes: float, out: Path, predicted: list[Predicted]) -> None:
    """Train a phase to its end; the state file and, once there is a decoder, the weights follow every two minutes.

    Args:
        training: Trained in place.
        speech: Where batches come from.
        minutes: Wall-clock length of the phase.
        out: Folder of the exported model.
        predicted: Speech with a voice model's codes for every other batch of the decoder; may be empty.
    """
    phase = PHASES[training.phase]
    began, saved = time.monotonic() - 60 * training.minutes, time.monotonic()
    running: dict[str, float] = {}
    usage = NUM_FRAMES / training.codec.quantizer.bins
    training.codec.train()
    if training.phase == "decoder":
        training.codec.quantizer.eval()
    while (progress := training.minutes / minutes) < 1:
        if training.phase == "codes" and training.step % RESTART_EVERY == RESTART_EVERY - 1:
            print(f"restarted {restart_dead_codes(training.codec, speech, usage)}", flush=True)
        rate = min(1.0, (training.step + 1) / 100) * (phase.rate[0] + (phase.rate[1] - phase.rate[0]) * progress)
        shape = SHAPES[training.step // 2 % 2]
        if predicted and training.step % 2:
            loss = training.predicted_loss(*predicted_batch(predicted, *shape, speech.rng))
        else:
            loss = training.loss(*speech.batch(*shape))
        losses = training.take_step(loss, rate)
        training.minutes = (time.monotonic() - began) / 60
        for name, value in losses.items():
            running[name] = running.get(name, value) + (value - running.get(name, value)) / min(training.step, 100)
        if training.step % 100 == 0:
            said = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {training.step} minute {training.minutes:.1f} {said}", flush=True)
        if time.monotonic() - saved > 2 * 60 or training.minutes >= minutes:
            saved = time.monotonic()
            training.save()
            if training.phase == "decoder":
                save_encodec(training.codec, Architecture(), out)


def round_weights(codec: EncodecModel) -> None:
    """Round encoder and codebooks to the precision that is stored: the decoder learns the codes there will be."""
    for part in (codec.encoder, codec.quantizer):
        part.load_state_dict({name: value.half().float() for name, value in part.state_dict().items()})


def main() -> None:
    """Read the command line and train one phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("material", type=Path, help="folder of demo.recipes.material; rendered if empty")
    parser.add_argument("--real-speech", type=Path, help="folder of FLAC files to mix in")
    parser.add_argument("--out", type=Path, default=Path("demo/models/encodec"))
    parser.add_argument("--state", type=Path, default=Path("encodec-training.pt"), help="to go on from")
    parser.add_argument("--codec", type=Path, help="folder of weights to start from where there is no state")
    parser.add_argument("--predicted", type=Path, help="folder of demo.recipes.predicted, for the decoder")
    parser.add_argument("--minutes", type=float, help="length of the phase")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    synthetic = load_material(arguments.material)
    real = load_real_speech(arguments.real_speech) if arguments.real_speech else []
    speech = Speech(synthetic, real, np.random.default_rng(arguments.seed))
    training = Training(arguments.phase, arguments.state, speech.num_phones)
    before = training.load() if training.file.exists() else None
    if before is None and arguments.codec:
        training.codec.load_state_dict(load_codec(str(arguments.codec))._model.state_dict())
    elif before is None:
        level_layers(training.codec, speech.batch(*SHAPES[1])[0])
    if (arguments.phase, before) == ("codes", "encoder"):
        stretch_latent(training, speech)
        start_codebooks(training.codec, speech, NUM_FRAMES / training.codec.quantizer.bins)
    if (arguments.phase, before) == ("decoder", "codes"):
        round_weights(training.codec)
    predicted = load_predicted(arguments.predicted) if arguments.predicted else []
    train(training, speech, arguments.minutes or PHASES[arguments.phase].minutes, arguments.out, predicted)


if __name__ == "__main__":
    main()
