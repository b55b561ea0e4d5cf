"""Score the bundled Whisper and aligner through the real WhisperX, on the demo corpus's held-out voices.

    python -m demo.recipes.asr_check data

Whole recordings in, with WhisperX's own voice activity detection. Nothing of what is scored was trained on.
"""

import argparse
import importlib
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import nltk
import numpy as np
import soundfile
import torch
import torchaudio
import whisperx

ASR_RATE = 16000
CHUNK_SECONDS = 8
"""The longest window the bundled Whisper knows well."""
ASR_OPTIONS: dict[str, Any] = {"suppress_tokens": [], "suppress_blank": False}
"""The small vocabulary lacks what WhisperX would suppress."""


@dataclass
class Truth:
    """A recording and what was said in it."""

    name: str
    audio: np.ndarray
    """float32 at `ASR_RATE`."""
    segments: list[dict[str, Any]]
    words: list[dict[str, Any]]


def offline_punkt() -> None:
    """Give NLTK an untrained Punkt for English if it has none: it splits at full stops and needs no download."""
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        root = Path(tempfile.mkdtemp(prefix="punkt-"))
        folder = root / "tokenizers" / "punkt_tab" / "english"
        folder.mkdir(parents=True)
        for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
            (folder / name).write_text("")
        nltk.data.path.insert(0, str(root))


def read_truth(data: Path, kind: str) -> list[Truth]:
    """The corpus's recordings of one kind, `unseen` or `train`."""
    root = data / "espeak-demo"
    found = []
    for line in (root / "truth.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["recording"].startswith(kind):
            samples, rate = soundfile.read(root / "audio" / row["recording"], dtype="float32")
            audio = torchaudio.functional.resample(torch.from_numpy(samples), rate, ASR_RATE).numpy()
            mark_pairs(row["segments"], row["words"])
            found.append(Truth(row["recording"], audio, row["segments"], row["words"]))
    return found


def mark_pairs(segments: list[dict[str, Any]], words: list[dict[str, Any]]) -> None:
    """Mark words whose end is another's: espeak-ng speaks pairs such as "in the" as one word, named by its first."""
    pieces = [piece.rstrip(".,") for part in segments for piece in part["text"].split()]
    at = 0
    for index, word in enumerate(words):
        following = words[index + 1]["word"] if index + 1 < len(words) else None
        word["pair"] = at + 1 < len(pieces) and pieces[at + 1] != following
        at += 2 if word["pair"] else 1


def normalise(text: str) -> str:
    """Lower-case words alone, as the scores count them."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def word_errors(said: list[dict[str, Any]], aligned: list[dict[str, Any]]) -> list[float]:
    """Distances between true and found word starts and ends, of the words that match (s)."""
    pairs = jiwer.process_words(
        " ".join(normalise(word["word"]).replace(" ", "") or "x" for word in said),
        " ".join(normalise(word["word"]).replace(" ", "") or "x" for word in aligned),
    )
    errors = []
    for chunk in pairs.alignments[0]:
        if chunk.type == "equal":
            for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
                true, found = said[chunk.ref_start_idx + offset], aligned[chunk.hyp_start_idx + offset]
                edges = ("start",) if true["pair"] else ("start", "end")
                errors += [abs(true[edge] - found[edge]) for edge in edges if edge in found]
    return errors


def through_codec(audio: np.ndarray) -> np.ndarray:
    """What the bundled codec makes of a recording."""
    codec = importlib.import_module("valle2.codec").load_codec("bundled")
    wave = torchaudio.functional.resample(torch.from_numpy(audio), ASR_RATE, 24000)
    with torch.inference_mode():
        wave = codec.decode(codec.encode(wave[None])).flatten()
    return torchaudio.functional.resample(wave, 24000, ASR_RATE).numpy()


def score_whisper(model: Any, truths: list[Truth], show: bool) -> tuple[dict[str, float], list[list[dict[str, Any]]]]:
    """Word error rate and speed over whole recordings, and the segments."""
    began, results = time.perf_counter(), []
    for truth in truths:
        results.append(model.transcribe(truth.audio, batch_size=8, chunk_size=CHUNK_SECONDS)["segments"])
    seconds = sum(len(truth.audio) for truth in truths) / ASR_RATE
    said = [" ".join(part["text"] for part in truth.segments) for truth in truths]
    heard = [" ".join(part["text"].strip() for part in segments) for segments in results]
    if show:
        for true, found in zip(said, heard, strict=True):
            print(f"SAID  {true}\nHEARD {found}")
    exact = jiwer.wer(said, heard)
    wer = jiwer.wer([normalise(text) for text in said], [normalise(text) for text in heard])
    rate = (time.perf_counter() - began) / seconds
    return {"wer": wer, "wer_cased_punctuated": exact, "real_time_factor": rate}, results


def score_aligner(folder: str, truths: list[Truth], heard: list[list[dict[str, Any]]] | None) -> dict[str, float]:
    """Word boundary errors with the true text, and with the heard one if given (s)."""
    offline_punkt()
    model, about = whisperx.load_align_model("en", "cpu", model_name=folder)
    model.eval()
    scores: dict[str, float] = {}
    began = time.perf_counter()
    texts = {"true_text": [truth.segments for truth in truths]}
    if heard is not None:
        texts["heard_text"] = heard
    for name, segments in texts.items():
        errors: list[float] = []
        for truth, parts in zip(truths, segments, strict=True):
            room = 0.15 if name == "true_text" else 0.0
            padded = [dict(part, start=max(0.0, part["start"] - room), end=part["end"] + room) for part in parts]
            aligned = whisperx.align(padded, model, about, truth.audio, "cpu")
            errors += word_errors(truth.words, aligned["word_segments"])
        scores |= {
            f"{name}_median_s": float(np.median(errors)),
            f"{name}_mean_s": float(np.mean(errors)),
            f"{name}_p95_s": float(np.percentile(errors, 95)),
        }
    seconds = sum(len(truth.audio) for truth in truths) / ASR_RATE
    return scores | {"real_time_factor": (time.perf_counter() - began) / seconds / len(texts)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--whisper", default="demo/models/whisper")
    parser.add_argument("--aligner", default="demo/models/aligner")
    parser.add_argument("--kind", default="unseen", choices=("unseen", "train"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--codec", action="store_true", help="send the recordings through the bundled codec first")
    parser.add_argument("--only", choices=("whisper", "aligner"))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    truths = read_truth(arguments.data, arguments.kind)[: arguments.limit]
    if arguments.codec:
        for truth in truths:
            truth.audio = through_codec(truth.audio)
    heard = None
    scores: dict[str, dict[str, float]] = {}
    if arguments.only != "aligner":
        model = whisperx.load_model(
            arguments.whisper, "cpu", compute_type="int8", language="en", threads=1, asr_options=dict(ASR_OPTIONS)
        )
        scores["whisper"], heard = score_whisper(model, truths, arguments.show)
    if arguments.only != "whisper":
        scores["aligner"] = score_aligner(arguments.aligner, truths, heard)
    rounded = {name: {key: round(value, 4) for key, value in part.items()} for name, part in scores.items()}
    print(json.dumps(rounded, indent=2))


if __name__ == "__main__":
    main()
