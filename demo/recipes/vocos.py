"""Train the bundled small Vocos, which turns the bundled EnCodec's codes into sound, on one CPU core.

    python -m demo.recipes.vocos MATERIAL --real-speech FOLDER --predicted FOLDER

Vocos (Siuzdak, 2023) says for each frame of codes a magnitude and a phase of every frequency, and an inverse Fourier
transform does the rest: all its layers run at the frame rate. In the same time it sees many times more speech than the
decoder of EnCodec, whose last layers run at every sample, and hears better what the codes say of a voice.

Every other batch has the codes that a voice model predicts (`demo.recipes.predicted`); there only magnitudes are
compared, since such codes do not say where in a period of the voice a frame begins. The loss is that of EnCodec's
decoder (`demo.recipes.encodec`); there is no discriminator. All speech is encoded once, beforehand, and kept beside the
state file, from which an interrupted training goes on. What the result is worth is measured by
`demo.recipes.encodec_check`, with `--decoder`.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from demo.recipes.encodec import HOP, REAL_SHARE, SHAPES, SpectralLoss, predicted_batch
from demo.recipes.material import SAMPLE_RATE, load_material, load_real_speech
from demo.recipes.predicted import NOISE, PEAKS, Predicted, load_predicted
from valle2.codec import Codec, load_codec
from valle2.vocoder import Vocoder, VocosConfig, codebooks_of, save_vocoder

MINUTES = 70.0
RATES = (1e-3, 2e-5)
"""Adam's rate at the start, after 200 steps, and at the end."""
DIM, LAYERS, N_FFT = 256, 6, 1280
LONGEST = 12 * SAMPLE_RATE
"""Samples that are encoded at a time."""
MOST_PADDING = 8000
"""Samples of silence, at most, on either side of an utterance."""


@dataclass
class Speech:
    """Utterances with their codes: synthetic and real speech with the codec's own, and with predicted ones."""

    synthetic: list[Predicted]
    real: list[Predicted]
    predicted: list[Predicted]

    def draw(self, step: int, rng: np.random.Generator) -> tuple[str, Tensor, Tensor]:
        """A batch: its kind, codes [8, B, T] and waves [B, 1, N]."""
        kind = "synthetic"
        if self.predicted and step % 2:
            kind = "predicted"
        elif self.real and rng.random() < REAL_SHARE:
            kind = "real"
        return kind, *predicted_batch(getattr(self, kind), *SHAPES[step // 2 % 2], rng)


def new_vocoder(codec: Codec) -> Vocoder:
    """One for a codec's codes, with random weights."""
    books = codebooks_of(codec)
    return Vocoder(
        VocosConfig.model_validate(
            {
                "feature_extractor": {"init_args": {"encodec_model": "encodec-demo", "bandwidths": (6.0,)}},
                "backbone": {
                    "init_args": {
                        "input_channels": books.shape[2],
                        "dim": DIM,
                        "intermediate_dim": 3 * DIM,
                        "num_layers": LAYERS,
                    }
                },
                "head": {"init_args": {"dim": DIM, "n_fft": N_FFT, "hop_length": HOP}},
            }
        ),
        books,
    )


def encode(codec: Codec, waves: list[np.ndarray], noise: float, rng: np.random.Generator) -> list[Predicted]:
    """Waves [N] with the codec's codes; levels, pauses and noise (greatest amplitude) vary as in the demo's corpus."""
    found = []
    for wave in waves:
        loudest = max(int(np.abs(wave.astype(np.int32)).max()), 1)
        for start in range(0, len(wave), LONGEST):
            before, after = rng.integers(0, MOST_PADDING, 2)
            part = np.pad(wave[start : start + LONGEST].astype(np.float32), (before, after))
            part *= rng.uniform(*PEAKS) / loudest
            part += rng.uniform(-1, 1, len(part)).astype(np.float32) * rng.uniform(0, noise)
            part = part[: len(part) // HOP * HOP].clip(-1, 1).astype(np.float32)
            codes = codec.encode(torch.from_numpy(part)[None])[0].numpy().astype(np.int16)
            found.append(Predicted(codes, np.rint(part * 32767).astype(np.int16)))
    return found


def load_speech(codec: Codec, arguments: argparse.Namespace, rng: np.random.Generator) -> Speech:
    """What to learn from; encoded now, or by a run before this one."""
    kept = arguments.state.with_suffix(".speech.npz")
    predicted = load_predicted(arguments.predicted) if arguments.predicted else []
    if not kept.exists():
        synthetic = encode(codec, [clip.samples for clip in load_material(arguments.material)], NOISE, rng)
        waves = load_real_speech(arguments.real_speech) if arguments.real_speech else []
        real = encode(codec, waves, 2e-5, rng)
        arrays = {"digest": np.array(codec.codes_digest), "num_synthetic": np.array(len(synthetic))}
        for index, item in enumerate([*synthetic, *real]):
            arrays |= {f"codes{index}": item.codes, f"samples{index}": item.samples}
        building = kept.with_suffix(".tmp.npz")
        np.savez(building, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword for an array's name
        building.replace(kept)
    with np.load(kept) as arrays:
        if str(arrays["digest"]) != codec.codes_digest:
            raise SystemExit(f"{kept} holds another codec's codes; delete it and {arguments.state}")
        number, split = (len(arrays) - 2) // 2, int(arrays["num_synthetic"])
        items = [Predicted(arrays[f"codes{index}"], arrays[f"samples{index}"]) for index in range(number)]
    return Speech(items[:split], items[split:], predicted)


class Training:
    """A Vocos, its optimiser and how far it has come, kept in a file.

    Attributes:
        minutes: Wall-clock time that it has trained for.
    """

    def __init__(self, vocoder: Vocoder, file: Path) -> None:
        self.vocoder, self.file = vocoder, file
        self.losses = SpectralLoss()
        self.optimizer = torch.optim.AdamW(vocoder.parameters(), betas=(0.8, 0.99), weight_decay=0)
        self.step, self.minutes = 0, 0.0

    def save(self) -> None:
        """Write the file, whole or not at all."""
        building = self.file.with_suffix(".tmp")
        states = {"vocoder": self.vocoder.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(states | {"step": self.step, "minutes": self.minutes}, building)
        building.replace(self.file)

    def load(self) -> None:
        """Go back to what the file holds."""
        stored = torch.load(self.file, weights_only=True)
        self.vocoder.load_state_dict(stored["vocoder"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step, self.minutes = stored["step"], stored["minutes"]

    def take_step(self, kind: str, codes: Tensor, wave: Tensor, share: float) -> float:
        """One step on codes [8, B, T] and waves [B, 1, N], after this share of the training; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = min(1.0, (self.step + 1) / 200) * (RATES[0] + (RATES[1] - RATES[0]) * share)
        heard = self.vocoder(codes.transpose(0, 1))[:, None]
        loss: Tensor = self.losses(heard, wave, phases=kind != "predicted")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vocoder.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()


def train(training: Training, speech: Speech, minutes: float, out: Path, rng: np.random.Generator) -> None:
    """Train to the end; the state file and the weights follow every two minutes.

    Args:
        training: Trained in place.
        speech: Where batches come from.
        minutes: Wall-clock length of the whole training.
        out: Folder of the exported model.
        rng: Draws batches.
    """
    began, saved = time.monotonic() - 60 * training.minutes, time.monotonic()
    running: dict[str, float] = {}
    while training.minutes < minutes:
        kind, codes, wave = speech.draw(training.step, rng)
        loss = training.take_step(kind, codes, wave, training.minutes / minutes)
        training.minutes = (time.monotonic() - began) / 60
        running[kind] = running.get(kind, loss) + (loss - running.get(kind, loss)) / min(training.step, 100)
        if training.step % 100 == 0:
            said = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {training.step} minute {training.minutes:.1f} {said}", flush=True)
        if time.monotonic() - saved > 2 * 60 or training.minutes >= minutes:
            saved = time.monotonic()
            training.save()
            save_vocoder(training.vocoder, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, help="folder of demo.recipes.material; rendered if empty")
    parser.add_argument("--real-speech", type=Path, help="folder of FLAC files to mix in")
    parser.add_argument("--predicted", type=Path, help="folder of demo.recipes.predicted")
    parser.add_argument("--out", type=Path, default=Path("demo/models/vocos"))
    parser.add_argument("--state", type=Path, default=Path("vocos-training.pt"), help="to go on from")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    codec = load_codec("bundled")
    training = Training(new_vocoder(codec), arguments.state)
    if training.file.exists():
        training.load()
    rng = np.random.default_rng([arguments.seed, training.step])
    train(training, load_speech(codec, arguments, rng), arguments.minutes, arguments.out, rng)


if __name__ == "__main__":
    main()
