"""EnCodec's tokens of 200 utterances of mixed lengths, batched, against the package's own calls one by one.

python -m benchmarks.encoding

The model is of the genuine 24 kHz shape with random weights. Neither `--layers` nor `--dim` matters here.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from encodec.model import EncodecModel

from benchmarks.report import Figure, main
from valle2.codec import Codec

UTTERANCES = 200
SHORTEST, LONGEST = 1.0, 10.0


def build() -> EncodecModel:
    """The genuine shape; codebooks as wide as the latents that they quantize, or every code would be the same."""
    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    model.set_target_bandwidth(6.0)
    width = model.encoder(torch.randn(1, 1, 24_000) * 0.1).std()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.normal_(std=float(width))
    return model


def utterances() -> list[torch.Tensor]:
    """Noise whose level comes and goes three times a second, as syllables do."""
    generator = torch.Generator().manual_seed(0)
    waves = []
    for seconds in torch.empty(UTTERANCES).uniform_(SHORTEST, LONGEST, generator=generator):
        times = torch.arange(int(seconds * 24_000)) / 24_000
        waves.append(torch.randn(len(times), generator=generator) * 0.1 * torch.sin(10 * times) ** 2)
    return waves


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures, both ways in turns; `--repeats` of them, of which the fastest count."""
    alone, codec = build().eval(), Codec(build(), "encodec_24khz", "random weights")
    waves = utterances()
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    times: dict[str, list[float]] = {"alone": [], "batched": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        wanted = [alone.encode(wave[None, None])[0][0][0] for wave in waves]
        times["alone"].append(time.perf_counter() - start)
        start = time.perf_counter()
        found = codec.encode(padded, lengths)
        times["batched"].append(time.perf_counter() - start)
    same = sum(
        torch.equal(own, row[:, : own.shape[1]]) for own, row in zip(wanted, found, strict=True)
    )  # one differing code counts the whole utterance
    audio = float(lengths.sum()) / 24_000
    return [
        Figure("audio", audio, "s"),
        Figure("one by one", min(times["alone"]), "s"),
        Figure("batched", min(times["batched"]), "s"),
        Figure("one by one / batched", min(times["alone"]) / min(times["batched"]), wanted=2),
        Figure("utterances with identical tokens", same / UTTERANCES, "share", 1.0),
    ]


if __name__ == "__main__":
    main("EnCodec, batched", run)
