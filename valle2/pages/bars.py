"""Histograms as SVG that follow the page's theme; the same counts are always the same bytes."""

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 240, 48, 34, 28
_TICKS = 6


def histogram(title: str, edges: Sequence[float], series: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Counts stacked on one another, bin by bin; colours are the page's `--c1`, `--c2` …; empty without counts.

    Args:
        title: Above it, and what a screen reader says; plain text without markup.
        edges: Of the bins, one more than there are bins; the outer ones hold what is beyond, too.
        series: Name and count of each bin, from the bottom up.
    """
    totals = [sum(counts) for counts in zip(*(counts for _, counts in series), strict=True)]
    if not any(totals):
        return ""
    width = (WIDTH - LEFT - 12) / len(totals)
    scale = (HEIGHT - TOP - BOTTOM) / max(totals)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>']
    parts.append(f'<text class="head" x="{LEFT}" y="15">{title}</text>')
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * max(totals) * scale
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * max(totals):g}</text>')
    for index in range(len(totals)):
        floor = float(HEIGHT - BOTTOM)
        for number, (_, counts) in enumerate(series):
            height = counts[index] * scale
            floor -= height
            if counts[index]:
                parts.append(
                    f'<rect x="{LEFT + index * width + 0.5:.1f}" y="{floor:.1f}" width="{width - 1:.1f}" '
                    f'height="{height:.1f}" fill="var(--c{number + 1})"/>'
                )
    step = max(1, round(len(totals) / _TICKS))
    for index in range(0, len(edges), step):
        x = LEFT + index * width
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{edges[index]:g}</text>')
    for number, (name, _) in enumerate(series):
        x = WIDTH - 12 - 70 * (len(series) - 1 - number)
        parts.append(f'<text x="{x}" y="28" text-anchor="end" style="fill:var(--c{number + 1})">{name}</text>')
    return "".join(parts) + "</svg>"
