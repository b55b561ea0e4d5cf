"""How much of a data stage's time is not its models': reading, resampling, text, checks, writing.

python -m benchmarks.overhead

One process, one thread, the demo's voices and the bundled models; `tokenize` also with a codec of the genuine 24 kHz
shape with random weights. The time of a model's calls includes making its features; models that are loaded count as
theirs.
"""

import argparse
import functools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoding import build
from benchmarks.report import Figure, main
from benchmarks.transcription import write
from valle2 import aligner, asr
from valle2.codec import Codec
from valle2.config.params import parse_config
from valle2.corpus import measurer, quality, tokenize, tokenizer, transcriber
from valle2.corpus.curate import curate
from valle2.corpus.ingest import ingest
from valle2.corpus.transcribe import transcribe

STAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "transcribe": (transcribe, ""),
    "curate": (curate, ""),
    "tokenize, small bundled codec": (tokenize.tokenize, "demo/models/encodec"),
    "tokenize, genuine shape": (tokenize.tokenize, "encodec_24khz-random.th"),
}
"""Each with its codec."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """Share of each stage's time that is no model's."""
    options.out = options.out.absolute()
    root = Path.cwd()
    spent: Counter[str] = Counter()
    for owner, name in (
        (asr.Asr, "find_speech"), (asr.Asr, "recognise_all"), (aligner.Aligner, "_emissions"), (aligner, "best_paths"),
        (quality.Dnsmos, "p808"), (measurer, "fingerprint"), (measurer.sound, "measure"), (Codec, "encode"),
        (transcriber, "load_models"), (quality.Dnsmos, "__init__"), (tokenizer, "load_codec"), (tokenize, "load_codec"),
    ):  # fmt: skip
        setattr(owner, name, timed(getattr(owner, name), spent))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VALLE2_HOME"] = str(Path(folder) / "home")
        os.chdir(write(Path(folder), options.files)["short"])
        models = {kind: str(root / "demo/models" / own) for kind, own in (("model", "whisper"), ("aligner", "aligner"))}
        torch.save(build().state_dict(), "encodec_24khz-random.th")
        (Path.cwd() / "demo").symlink_to(root / "demo")
        config = parse_config(
            {
                "runtime": {"num_threads": 1},
                "transcribe": models,
                "curate": {
                    "min_dnsmos": 1.0,
                    "max_bit_error": 0,
                    "test_speakers": 1,
                    "dev_speakers": 1,
                    "vocab_size": 60,
                },
            }
        )
        ingest(config)
        for stage, (do, codec) in STAGES.items():
            spent.clear()
            start = time.perf_counter()
            do(config.model_copy(update={"tokenize": config.tokenize.model_copy(update={"codec": codec})}))
            whole = time.perf_counter() - start
            for name, seconds in spent.most_common():
                print(f"{stage}: {name} {seconds:.1f} s of {whole:.1f} s")
            figures.append(Figure(f"{stage}: all but the models", 1 - spent.total() / whole, "share", 0.1, False))
        os.chdir(options.out.anchor)
    return figures


def timed(function: Callable[..., Any], spent: Counter[str]) -> Callable[..., Any]:
    """The same, adding up its seconds under its name."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **more)
        finally:
            spent[function.__qualname__] += time.perf_counter() - start  # type: ignore[assignment]

    return wrapper


if __name__ == "__main__":
    main("Overhead", run, files=100)
