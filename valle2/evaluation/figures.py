"""Pictures of the report as bytes that never change: WebP spectrograms, SVG curves that follow the page's theme."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from valle2.pages.page import data_uri

NUM_MELS = 64
HOP_SECONDS = 0.0125
DYNAMIC_RANGE = 70.0
"""dB from black to white."""
WEBP_QUALITY = 40
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 260, 48, 28


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    points: tuple[tuple[float, float], ...]


def spectrogram(wave: Float[np.ndarray, " n"], sample_rate: int) -> str:
    """A log-mel spectrogram as a WebP data URI, one pixel a band and 12.5 ms: a tenth of the same PNG."""
    import librosa
    from matplotlib import colormaps
    from PIL import Image

    hop = round(HOP_SECONDS * sample_rate)
    padded = np.pad(wave, (0, max(0, 4 * hop - len(wave))))
    mel = librosa.feature.melspectrogram(y=padded, sr=sample_rate, n_fft=4 * hop, hop_length=hop, n_mels=NUM_MELS)
    level = librosa.power_to_db(mel, ref=max(float(mel.max()), 1e-10), top_db=DYNAMIC_RANGE)
    pixels = np.rint((level / DYNAMIC_RANGE + 1) * 255).clip(0, 255).astype(np.uint8)[::-1]
    colours = (colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours[pixels]).save(stream, "WEBP", quality=WEBP_QUALITY)
    return data_uri(stream.getvalue(), "image/webp")


def curves(title: str, series: Sequence[Series]) -> str:
    """Curves over steps as one SVG; colours are the page's `--c1`, `--c2` …; empty without points."""
    points = [point for one in series for point in one.points if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    low_x, high_x = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1])
    low_y, high_y = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low_x) / max(high_x - low_x, 1e-12) * (WIDTH - LEFT - 12)
        up = (y - low_y) / max(high_y - low_y, 1e-12) * (HEIGHT - BOTTOM - 34)
        return f"{across:.1f},{HEIGHT - BOTTOM - up:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>']
    parts.append(f'<text class="head" x="{LEFT}" y="15">{title}</text>')
    for tick in y_ticks:
        x, y = place(low_x, tick).split(",")
        parts.append(f'<line class="grid" x1="{x}" x2="{WIDTH - 12}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, low_y).split(",")
        parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    for index, one in enumerate(series):
        line = " ".join(place(x, y) for x, y in one.points if math.isfinite(y))
        colour = f"var(--c{index % 4 + 1})"
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{WIDTH - 12}" y="{15 + 15 * index}" text-anchor="end" style="fill:{colour}">{one.name}</text>'
        )
    return "".join(parts) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that span the values."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(first, last + 1)]
