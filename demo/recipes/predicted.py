"""Speech with the codes that a voice model gives it, for the codec's decoder to learn from.

    python -m demo.recipes.predicted MATERIAL FOLDER --champion demo/champion

A voice model does not say the codes of a recording: its NAR model fills in, frame by frame and all at once, the
likeliest codes of the finer codebooks, and those of neighbouring frames do not agree on where in a period of the voice
they are. A decoder that only ever heard an encoder's codes makes a hoarse voice of them. So, as vocoders are tuned on
what the model before them predicts, here each utterance of the material gets the first codebook of its own recording
and the others from the NAR model, behind another utterance of its voice as prompt. `demo.recipes.encodec` and
`demo.recipes.vocos` take them with `--predicted`. An interrupted run goes on where it was.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.recipes.material import Clip, load_material
from valle2.model.nar import NARModel
from valle2.synthesis import Synthesizer
from valle2.text import normalise

BATCH, BLOCK = 4, 64
"""Utterances that are predicted together; a block is sorted by length, so that they are equally long."""
PEAKS = (0.3, 1.0)
NOISE = 1.4e-3
"""Bounds of the peak, and of the noise's greatest amplitude, as in the demo's corpus."""


@dataclass(frozen=True)
class Predicted:
    """An utterance as it is, and the codes that a voice model gives it.

    Attributes:
        codes: int16 [8, T], the first codebook the recording's own.
        samples: int16 [320 T].
    """

    codes: np.ndarray
    samples: np.ndarray


def draw_pairs(clips: list[Clip], number: int, seed: int) -> list[tuple[Clip, Clip]]:
    """Prompts and targets: two utterances of one voice each, the voices in turn."""
    rng = np.random.default_rng(seed)
    voices: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        voices[clip.voice].append(clip)
    order = [sorted(voices)[i] for i in rng.permutation(len(voices))]
    pairs = []
    for turn in range(number):
        mine = voices[order[turn % len(order)]]
        prompt, target = rng.choice(len(mine), 2, replace=False)
        pairs.append((mine[prompt], mine[target]))
    blocks = [pairs[first : first + BLOCK] for first in range(0, number, BLOCK)]
    return [
        pair for block in blocks for pair in sorted(block, key=lambda pair: sum(len(clip.samples) for clip in pair))
    ]


@torch.inference_mode()
def predict(synthesizer: Synthesizer, pairs: list[tuple[Clip, Clip]], rng: np.random.Generator) -> list[Predicted]:
    """A batch of targets with predicted codes."""
    codec, found = synthesizer.codec, []
    texts = [synthesizer.bpe.encode(normalise(f"{prompt.text} {target.text}")) for prompt, target in pairs]
    rows: list[tuple[Tensor, Tensor, np.ndarray]] = []
    for prompt, target in pairs:
        gain = rng.uniform(*PEAKS) / max(np.abs(target.samples.astype(np.int32)).max(), 1)
        waves = []
        for clip in (prompt, target):
            wave = clip.samples.astype(np.float32) * gain
            waves.append(wave + rng.uniform(-1, 1, len(wave)).astype(np.float32) * rng.uniform(0, NOISE))
        codes = [codec.encode(torch.from_numpy(wave.clip(-1, 1).astype(np.float32))[None])[0] for wave in waves]
        rows.append((codes[0], codes[1], waves[1]))
    lengths = torch.tensor([before.shape[1] + true.shape[1] for before, true, _ in rows])
    text = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in texts], batch_first=True)
    whole = torch.zeros(len(rows), codec.num_codebooks, int(lengths.max()), dtype=torch.long)
    for place, (before, true, _) in zip(whole, rows, strict=True):
        place[:, : before.shape[1]] = before
        place[0, before.shape[1] : before.shape[1] + true.shape[1]] = true[0]
    conditions = torch.tensor([before.shape[1] for before, _, _ in rows])
    nar: NARModel = synthesizer.nar
    made = nar.generate(text, torch.tensor([len(tokens) for tokens in texts]), whole, lengths, conditions)
    for row, start, end, (_, _, wave) in zip(made, conditions.tolist(), lengths.tolist(), rows, strict=True):
        size = (end - start) * codec.hop_length
        samples = np.zeros(size, np.int16)
        samples[: len(wave)] = np.rint(wave.clip(-1, 1) * 32767)
        found.append(Predicted(row[:, start:end].numpy().astype(np.int16), samples))
    return found


def load_predicted(folder: Path) -> list[Predicted]:
    """What `main` wrote."""
    return [Predicted(item["codes"], item["samples"]) for item in map(np.load, sorted(folder.glob("*.npz")))]


def main() -> None:
    """Read the command line and write one .npz for each utterance; those that are there are left as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path, help="folder of demo.recipes.material")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--champion", type=Path, default=Path("demo/champion"), help="voice model folder")
    parser.add_argument("--number", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    synthesizer = Synthesizer.from_path(arguments.champion)
    pairs = draw_pairs(load_material(arguments.material), arguments.number, arguments.seed)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(pairs), BATCH):
        if (arguments.folder / f"{min(first + BATCH, len(pairs)) - 1:05d}.npz").exists():
            continue
        batch = predict(synthesizer, pairs[first : first + BATCH], np.random.default_rng([arguments.seed, first]))
        for place, item in enumerate(batch, first):
            np.savez(arguments.folder / f"{place:05d}.npz", codes=item.codes, samples=item.samples)
        print(f"{first + len(batch)} of {len(pairs)}", flush=True)


if __name__ == "__main__":
    main()
