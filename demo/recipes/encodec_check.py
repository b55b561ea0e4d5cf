"""Score a codec's round trip on the held-out voices of a rendered demo corpus.

    python -m demo.recipes.encodec_check data --asr demo/models/whisper

prints one JSON object: word error rate, DNSMOS P.808 and speaker similarity before and after, spectral distance, how
many entries of each codebook occur, and how well each tells phones apart. Without `--asr` there is no word error rate.
With `--decoder demo/models/vocos` a Vocos decodes.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
import torch
import torchaudio
import whisperx
from speechmos import dnsmos
from torch import Tensor

from demo.corpus import make_voice
from demo.espeak import speak
from demo.recipes.encodec import SpectralLoss
from demo.recipes.material import timed_phones
from valle2.codec import Codec, load_codec
from valle2.evaluation.metrics import load_speaker_encoder, similarity
from valle2.vocoder import OWN, Decoder, load_decoder

ASR_RATE = 16_000
DNSMOS_SECONDS = 9
PROMPT_SECONDS = 5
SIM_SECONDS = 3


@dataclass(frozen=True)
class HeldOut:
    """A recording [N] at the codec's rate and what is said in it."""

    wave: Tensor
    text: str
    phones: list[tuple[str, float]]
    """And when each starts, s; pauses have an empty name."""


def plain_words(text: str) -> str:
    """Lower-case words without punctuation."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def held_out(corpus: Path, sample_rate: int) -> list[HeldOut]:
    """The recordings of unseen voices under the `data/` folder that `demo.corpus` wrote."""
    root = corpus / "espeak-demo"
    found: list[HeldOut] = []
    for line in (root / "truth.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["recording"].startswith("unseen-"):
            samples, rate = soundfile.read(root / "audio" / row["recording"], dtype="float32")
            wave = torchaudio.functional.resample(torch.from_numpy(samples), rate, sample_rate)
            voice = make_voice(int(row["recording"].split("/")[0].removeprefix("unseen-")))
            phones = [
                (name, segment["start"] + start)
                for segment in row["segments"]
                for name, start in timed_phones(speak(segment["text"], voice))
            ]
            found.append(HeldOut(wave, plain_words(" ".join(segment["text"] for segment in row["segments"])), phones))
    return found


def phone_accuracy(books: list[Tensor], phones: list[np.ndarray]) -> float:
    """Share of frames whose phone is the one that their code mostly stands for in the other recordings.

    Args:
        books: One codebook's codes [T] of each recording.
        phones: The phone at the middle of each frame.
    """
    right = []
    for left_out, (codes, spoken) in enumerate(zip(books, phones, strict=True)):
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for other, (their_codes, theirs) in enumerate(zip(books, phones, strict=True)):
            if other != left_out:
                for code, phone in zip(their_codes.tolist(), theirs, strict=True):
                    counts[code][phone] += 1
        means = {code: count.most_common(1)[0][0] for code, count in counts.items()}
        right += [means.get(code) == phone for code, phone in zip(codes.tolist(), spoken, strict=True)]
    return sum(right) / len(right)


def phone_at(recording: HeldOut, times: np.ndarray) -> np.ndarray:
    """Names of the phones that sound at the given times [T], s."""
    names = np.array(["", *(name for name, _ in recording.phones)])
    return names[np.searchsorted([start for _, start in recording.phones], times, side="right")]


def quality(wave: Tensor, sample_rate: int) -> float:
    """Mean DNSMOS P.808 over windows of a recording [N]."""
    audio = torchaudio.functional.resample(wave, sample_rate, ASR_RATE).clamp(-1, 1).numpy()
    window = DNSMOS_SECONDS * ASR_RATE
    starts = range(0, max(len(audio) - window, 0) + 1, window)
    return float(np.mean([dnsmos.run(audio[start : start + window], ASR_RATE)["p808_mos"] for start in starts]))


def word_error_rate(waves: list[Tensor], texts: list[str], sample_rate: int, model: Any) -> float:
    """Word error rate, as a share, of a WhisperX pipeline over recordings."""
    heard: list[str] = []
    for wave in waves:
        audio = torchaudio.functional.resample(wave, sample_rate, ASR_RATE).numpy()
        segments = model.transcribe(audio, batch_size=4, chunk_size=8)["segments"]
        heard.append(plain_words(" ".join(segment["text"] for segment in segments)))
    return float(jiwer.wer(texts, heard))


def speaker_wins(waves: list[Tensor], prompts: list[Tensor], sample_rate: int) -> float:
    """Share of pairs in which a piece of speech is nearer to its own voice's prompt than to another voice's.

    Args:
        waves: One recording [N] of each voice; pieces are taken behind where its prompt ends.
        prompts: The recordings that the prompts are cut from, at their start.
        sample_rate: Of all.
    """
    encoder = load_speaker_encoder("resemblyzer")
    cut, piece = PROMPT_SECONDS * sample_rate, SIM_SECONDS * sample_rate

    def embed(wave: Tensor) -> np.ndarray:
        return encoder.embed(torchaudio.functional.resample(wave, sample_rate, ASR_RATE).clamp(-1, 1).numpy())

    heads = [embed(prompt[:cut]) for prompt in prompts]
    wins: list[int] = []
    for index, wave in enumerate(waves):
        others = [head for other, head in enumerate(heads) if other != index]
        for start in range(cut, len(wave) - piece + 1, piece):
            wins.append(similarity(embed(wave[start : start + piece]), heads[index], others).wins)
    return sum(wins) / (len(wins) * (len(waves) - 1))


def score(codec: Codec, decoder: Decoder, recordings: list[HeldOut], asr: Path | None) -> dict[str, Any]:
    """All scores of a codec and what decodes; `asr` is a CTranslate2 Whisper folder."""
    loss = SpectralLoss()
    rate = codec.sample_rate
    before = [recording.wave for recording in recordings]
    codes = [codec.encode(wave[None]) for wave in before]
    after = [decoder.decode(code)[0, : len(wave)] for code, wave in zip(codes, before, strict=True)]
    books = torch.cat([code[0] for code in codes], dim=1)
    shares = [torch.bincount(book, minlength=codec.codebook_size) / books.shape[1] for book in books]
    pairs = zip(after, before, strict=True)
    middles = [(np.arange(code.shape[2]) + 0.5) / codec.frame_rate for code in codes]
    phones = [phone_at(recording, times) for recording, times in zip(recordings, middles, strict=True)]
    scores: dict[str, Any] = {
        "codec": codec.digest,
        "decoder": decoder.digest,
        "seconds": round(sum(map(len, before)) / rate),
        "spectral_loss": round(float(np.mean([loss(a[None, None], b[None, None]).item() for a, b in pairs])), 3),
        "p808_before": round(float(np.mean([quality(wave, rate) for wave in before])), 2),
        "p808_after": round(float(np.mean([quality(wave, rate) for wave in after])), 2),
        "sim_wins_before": round(speaker_wins(before, before, rate), 3),
        "sim_wins_after": round(speaker_wins(after, before, rate), 3),
        "entries_used": [int((share > 0).sum()) for share in shares],
        "phone_accuracy": [
            round(phone_accuracy([code[0, book] for code in codes], phones), 3) for book in range(codec.num_codebooks)
        ],
        "entropy_bits": [round(float(-(share * (share + 1e-12).log2()).sum()), 2) for share in shares],
    }
    if asr:
        options = {"suppress_tokens": [], "suppress_blank": False}
        model = whisperx.load_model(str(asr), "cpu", compute_type="int8", language="en", threads=1, asr_options=options)
        texts = [recording.text for recording in recordings]
        for name, waves in (("wer_before", before), ("wer_after", after)):
            scores[name] = round(word_error_rate(waves, texts, rate, model), 4)
    return scores


def main() -> None:
    """Read the command line and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="data/ folder that demo.corpus wrote")
    parser.add_argument("--codec", default="bundled", help="name or path, as for tokenize.codec")
    parser.add_argument("--decoder", default=OWN, help="as for evaluate.decoder")
    parser.add_argument("--asr", type=Path, help="folder of a CTranslate2 Whisper")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_codec(arguments.codec)
    recordings = held_out(arguments.corpus, codec.sample_rate)
    print(json.dumps(score(codec, load_decoder(arguments.decoder, codec), recordings, arguments.asr), indent=2))


if __name__ == "__main__":
    main()
