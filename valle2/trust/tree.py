"""A model's lineage as a tree on the terminal: short by default, whole on demand."""

from collections import Counter

from rich.markup import escape
from rich.tree import Tree

from valle2.trust.trace import Trace, Voice

SHORT = 3
"""Entries shown of a list, unless all are asked for."""


def render(trace: Trace, title: str, show_all: bool = False) -> Tree:
    """Draw a trace.

    Args:
        trace: What to draw.
        title: The model's name and version.
        show_all: Every recording and segment in place of the first few.
    """
    record = trace.record
    tree = Tree(f"[bold]{escape(title)}[/bold]  lineage {trace.digest}")
    tree.add(f"made {record.created} by run {escape(record.run)}")
    files = tree.add("model files")
    for name, sha256 in sorted(record.model_sha256.items()):
        files.add(f"{escape(name)}  sha256 {sha256 if show_all else sha256[:16] + '…'}")
    if record.gate:
        gate = tree.add(f"gate: {'passed' if record.gate.get('passed') else '[red]failed[/red]'}")
        for rule in record.gate.get("rules", []):
            gate.add(("[green]✓[/green] " if rule["passed"] else "[red]✗[/red] ") + escape(rule["sentence"]))
    _stages(tree, trace)
    _shards(tree, trace, show_all)
    _voices(tree, trace, show_all)
    if trace.parent:
        tree.add(render(trace.parent, "training started from", show_all))
    for note in trace.notes:
        tree.add(f"[yellow]{escape(note)}[/yellow]")
    return tree


def _stages(tree: Tree, trace: Trace) -> None:
    branch = tree.add("stages")
    for stage, (name, record) in trace.stages.items():
        dirty = " [red]with uncommitted changes[/red]" if record.code.dirty else ""
        node = branch.add(f"{stage}  [dim]{name[:12]}[/dim]  {escape(record.figure)}")
        node.add(f"run {escape(record.run)}, commit {record.code.commit[:12]}{dirty}, finished {record.finished}")
        if record.mlflow_run_id:
            node.add(f"MLflow run {record.mlflow_run_id}")
        for path, md5 in sorted(record.outs.items()):
            node.add(f"[dim]{escape(path)}  md5 {md5}[/dim]")


def _shards(tree: Tree, trace: Trace, show_all: bool) -> None:
    if not trace.shards:
        return
    cuts = sum(shard.cuts for shard in trace.shards)
    branch = tree.add(f"{len(trace.shards)} shards, {cuts} cuts")
    shown = trace.shards if show_all else trace.shards[:SHORT]
    for shard in shown:
        node = branch.add(f"{shard.split}, {shard.cuts} cuts, {shard.frames} frames")
        for name, sha256 in shard.sha256.items():
            node.add(f"[dim]{escape(name)}  sha256 {sha256 if show_all else sha256[:16] + '…'}[/dim]")
    _rest(branch, len(trace.shards) - len(shown), "shards")


def _voices(tree: Tree, trace: Trace, show_all: bool) -> None:
    if not trace.voices:
        return
    licences = _tally([voice.licence for voice in trace.voices])
    bases = _tally([voice.consent.basis if voice.consent else "none" for voice in trace.voices])
    branch = tree.add(f"{len(trace.voices)} voices (licence: {licences}; consent: {bases})")
    for voice in trace.voices:
        _voice(branch, voice, show_all)


def _tally(names: list[str]) -> str:
    return ", ".join(f"{escape(name)} {count}" for name, count in sorted(Counter(names).items()))


def _voice(tree: Tree, voice: Voice, show_all: bool) -> None:
    pieces = [piece for recording in voice.recordings for piece in recording.segments]
    splits = "/".join(sorted({piece.split for piece in pieces}))
    seconds = sum(piece.seconds for piece in pieces)
    node = tree.add(
        f"[bold]{escape(voice.speaker)}[/bold]  {splits}, {len(pieces)} segments, {seconds:.0f} s, "
        f"{escape(voice.licence)}, source {escape(voice.source)}"
    )
    consent = escape(voice.consent.sentence) if voice.consent else "[red]none[/red]"
    node.add(f"consent: {consent}")
    for recording in voice.recordings if show_all else voice.recordings[:SHORT]:
        sha256 = recording.sha256 if show_all else recording.sha256[:16] + "…"
        file = node.add(f"{escape(recording.path or recording.id)}  {recording.seconds:.1f} s  sha256 {sha256}")
        shown = recording.segments if show_all else recording.segments[:SHORT]
        for piece in shown:
            file.add(
                f"[dim]{piece.start:.2f}-{piece.start + piece.seconds:.2f} s[/dim] {escape(piece.text)} "
                f"[dim]({escape(piece.id)})[/dim]"
            )
        _rest(file, len(recording.segments) - len(shown), "segments")
    _rest(node, 0 if show_all else len(voice.recordings) - SHORT, "recordings")


def _rest(tree: Tree, count: int, what: str) -> None:
    if count > 0:
        tree.add(f"[dim]… {count} more {what} (--all)[/dim]")
