"""What `ingest` would take and refuse, as two tables."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from lhotse import MonoCut
from rich.console import Console
from rich.table import Table

from valle2.config.ingest import IngestParams
from valle2.corpus.ingest import dry_run
from valle2.corpus.sound import source_rate


def show(config: IngestParams) -> None:
    """Print them; nothing is written that a stage reads.

    Raises:
        SourceError: As `valle2.corpus.ingest.dry_run`.
    """
    cuts, quarantine = dry_run(config)
    console = Console(soft_wrap=True)
    console.print(_taken(cuts))
    if quarantine:
        console.print(_refused(quarantine))


def _taken(cuts: Iterable[MonoCut]) -> Table:
    table = Table("source", "licence", "recordings", "speakers", "hours", "with text", "sample rates", title="taken")
    by_source: dict[str, list[MonoCut]] = defaultdict(list)
    for cut in cuts:
        by_source[(cut.custom or {})["source"]].append(cut)
    for name, own in sorted(by_source.items()):
        abouts = [cut.supervisions[0] for cut in own]
        rates = {source_rate(cut.recording.to_dict()) for cut in own}
        table.add_row(
            name, ", ".join(sorted({(cut.custom or {})["licence"] for cut in own})), str(len(own)),
            str(len({about.speaker for about in abouts})), f"{sum(cut.duration for cut in own) / 3600:.2f}",
            str(sum(about.text is not None for about in abouts)), ", ".join(f"{rate} Hz" for rate in sorted(rates)),
        )  # fmt: skip
    return table


def _refused(quarantine: list[dict[str, Any]]) -> Table:
    table = Table("reason", "files", "hours", "such as", "why", title="refused")
    by_reason: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in quarantine:
        by_reason[row["reason"]].append(row)
    for reason, rows in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        hours = sum(row["seconds"] or 0 for row in rows) / 3600
        table.add_row(reason, str(len(rows)), f"{hours:.2f}", rows[0]["file"], rows[0]["detail"])
    return table
