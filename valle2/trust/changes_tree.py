"""The changes between two versions of the data as a tree on the terminal: short by default, whole on demand."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

SHORT = 3
"""Entries shown of a list, unless all are asked for."""


def render(changes: Mapping[str, Any], show_all: bool = False) -> Tree:
    """Draw what `valle2.trust.changes.compare` found.

    Args:
        changes: What to draw.
        show_all: Every recording, segment and speaker in place of the first few.
    """
    limit = None if show_all else SHORT
    tree = Tree(f"[bold]{escape(changes['before'])}[/bold] -> [bold]{escape(changes['after'])}[/bold]")
    if changes["same"]:
        tree.add("the outputs of all data stages are the same bytes")
    _causes(tree, changes["causes"])
    if changes["same"]:
        return tree
    _hours(tree, changes["hours"])
    _recordings(tree, changes["recordings"], limit)
    for reason, pair in changes["refused_files"].items():
        tree.add(f"files refused as {escape(reason)}: {_pair(pair)}")
    speakers = changes["speakers"]
    branch = tree.add(f"speakers: {_pair(speakers['count'])}")
    _names(branch, "added", speakers["added"], limit)
    _names(branch, "removed", speakers["removed"], limit)
    _segments(tree, changes["segments"], limit)
    branch = tree.add("shards")
    for split, counts in changes["shards"].items():
        branch.add(f"{split}: " + ", ".join(f"{name} {_pair(pair)}" for name, pair in counts.items()))
    return tree


def _causes(tree: Tree, causes: Mapping[str, Any]) -> None:
    branch = tree.add("what went in" if causes else "the same data, parameters and code went in")
    for stage, told in causes.items():
        node = branch.add(stage)
        for path in told.get("inputs", []):
            node.add(f"[yellow]{escape(path)}[/yellow] changed")
        for name, (old, new) in told.get("params", {}).items():
            node.add(f"{escape(name)}: {escape(str(old))} -> [yellow]{escape(str(new))}[/yellow]")
        for path in told.get("code", []):
            node.add(f"[dim]code {escape(path)} changed[/dim]")


def _hours(tree: Tree, hours: Mapping[str, Sequence[float]]) -> None:
    branch = tree.add("hours")
    width = max(len(name) for name in hours)
    for name, (old, new) in hours.items():
        change = f"  [yellow]{new - old:+.4f}[/yellow]" if new != old else ""
        branch.add(f"{escape(name):{width}}  {old:10.4f} -> {new:10.4f}{change}")


def _recordings(tree: Tree, found: Mapping[str, Any], limit: int | None) -> None:
    branch = tree.add(f"recordings: {_pair(found['count'])}")
    _names(branch, "added", found["added"], limit)
    _names(branch, "removed", found["removed"], limit)
    _names(branch, "other sound under the same name", found["changed"], limit)
    _list(branch, "renamed", [f"{old} -> {new}" for old, new in found["renamed"].items()], limit)
    told = [
        f"{name}: " + ", ".join(f"{what} {old or 'none'} -> {new or 'none'}" for what, (old, new) in differs.items())
        for name, differs in found["told_otherwise"].items()
    ]
    _list(branch, "the same sound, told otherwise", told, limit)


def _segments(tree: Tree, found: Mapping[str, Any], limit: int | None) -> None:
    branch = tree.add(f"segments kept: {_pair(found['kept'])}")
    for part in found["moved"]:
        _list(branch, f"{part['from']} -> [yellow]{part['to']}[/yellow], {part['hours']:.4f} h", part["ids"], limit)
    for kind, what in (("added", "new"), ("removed", "gone")):
        for outcome, part in found[kind].items():
            _list(branch, f"{what}: {outcome}, {part['hours']:.4f} h", part["ids"], limit)
    texts = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in found["texts"].items()]
    _list(branch, "other text", texts, limit)


def _names(tree: Tree, what: str, hours: Mapping[str, float], limit: int | None) -> None:
    entries = [f"{name}  {value:.4f} h" for name, value in hours.items()]
    _list(tree, f"{what}, {sum(hours.values()):.4f} h", entries, limit)


def _list(tree: Tree, what: str, entries: Sequence[str], limit: int | None) -> None:
    """A heading with its number of entries, and as many of them as wanted; nothing where there are none."""
    if not entries:
        return
    branch = tree.add(f"{what}: {len(entries)}")
    for entry in entries[:limit]:
        branch.add(f"[dim]{escape(entry)}[/dim]")
    if limit is not None and len(entries) > limit:
        branch.add(f"[dim]… {len(entries) - limit} more (--all)[/dim]")


def _pair(pair: Sequence[int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} -> [yellow]{pair[1]}[/yellow]"
