"""What changed between two versions of the data: what went in, what was decided, and what could have made it so.

Sound is compared by content, so that a file that was renamed is not a new one, and a segment with the same sound is the
same segment in whatever recording. How it looks is in `valle2.trust.changes_tree`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from valle2.trust.contents import DATA_STAGES, Contents, DataVersion, Made, Recording, Segment, read_contents
from valle2.trust.objects import ObjectReader
from valle2.types import SPLITS

_OUTPUTS = "artifacts/"
"""Inputs below are other stages' outputs: what changes them is told there."""


def compare(before: DataVersion, after: DataVersion, objects: ObjectReader) -> dict[str, Any]:
    """Compare two versions.

    Args:
        before: The earlier one.
        after: The later one.
        objects: Reads what both name.

    Returns:
        Everything that differs, JSON-able; pairs are (before, after).

    Raises:
        LineageError: An output of one of them is in none of the places, or damaged.
    """
    found: dict[str, Any] = {
        "before": before.name,
        "after": after.name,
        "same": all(before.stages[stage].outs == after.stages[stage].outs for stage in DATA_STAGES),
        "causes": {
            stage: told for stage in DATA_STAGES if (told := _causes(before.stages[stage], after.stages[stage]))
        },
    }
    if found["same"]:
        return found
    old, new = read_contents(before, objects), read_contents(after, objects)
    return found | {
        "hours": _hours(old.funnel, new.funnel),
        "recordings": _recordings(old.recordings, new.recordings),
        "refused_files": _changed(old.refused, new.refused, 0),
        "speakers": _speakers(old.recordings, new.recordings),
        "segments": _segments(old, new),
        "shards": _shards(old.shards, new.shards),
    }


def _causes(old: Made, new: Made) -> dict[str, Any]:
    """Parameters, code and other inputs of a stage that differ."""
    inputs = [path for path in _changed(old.deps, new.deps, None) if not path.startswith(_OUTPUTS)]
    told = {
        "params": _changed(_flat(old.params), _flat(new.params), None),
        "code": [path for path in inputs if path.startswith("valle2/")],
        "inputs": [path for path in inputs if not path.startswith("valle2/")],
    }
    return {name: value for name, value in told.items() if value}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return flat


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], lacking: Any) -> dict[str, list[Any]]:
    """Values that differ, by name: before and after."""
    names = sorted({*old, *new})
    pairs = {name: [old.get(name, lacking), new.get(name, lacking)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _hours(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[float]]:
    """Where the hours went, before and after, whether they differ or not."""
    both = [
        {
            "taken in": funnel["in"]["hours"],
            **{f"dropped as {reason}": part["hours"] for reason, part in sorted(funnel["dropped"].items())},
            **{f"kept for {split}": funnel["kept"][split]["hours"] for split in SPLITS},
        }
        for funnel in (old, new)
    ]
    names = dict.fromkeys((*both[0], *both[1]))
    ordered = sorted(names, key=lambda name: (name != "taken in", name.startswith("kept")))
    return {name: [part.get(name, 0.0) for part in both] for name in ordered}


def _recordings(old: Mapping[str, Recording], new: Mapping[str, Recording]) -> dict[str, Any]:
    gone = {name: of for name, of in old.items() if name not in new}
    came = {name: of for name, of in new.items() if name not in old}
    called = {of.sound: name for name, of in gone.items()}
    renamed = {called[of.sound]: name for name, of in came.items() if of.sound in called}
    stayed = [(name, name) for name in old if name in new and old[name].sound == new[name].sound]
    told = {
        after: differs
        for before, after in (*stayed, *renamed.items())
        if (differs := _changed(old[before].about, new[after].about, ""))
    }
    return {
        "count": [len(old), len(new)],
        "added": _with_hours((name, of) for name, of in came.items() if name not in renamed.values()),
        "removed": _with_hours((name, of) for name, of in gone.items() if name not in renamed),
        "changed": _with_hours((name, new[name]) for name in old if name in new and old[name].sound != new[name].sound),
        "renamed": renamed,
        "told_otherwise": told,
    }


def _with_hours(recordings: Iterable[tuple[str, Recording]]) -> dict[str, float]:
    return {name: round(of.seconds / 3600, 5) for name, of in recordings}


def _speakers(old: Mapping[str, Recording], new: Mapping[str, Recording]) -> dict[str, Any]:
    """Hours of speakers who came or went."""
    both = []
    for recordings in (old, new):
        seconds: dict[str, float] = defaultdict(float)
        for of in recordings.values():
            seconds[of.about["speaker"]] += of.seconds
        both.append({name: round(value / 3600, 5) for name, value in sorted(seconds.items())})
    return {
        "count": [len(part) for part in both],
        "added": {name: hours for name, hours in both[1].items() if name not in both[0]},
        "removed": {name: hours for name, hours in both[0].items() if name not in both[1]},
    }


def _segments(old: Contents, new: Contents) -> dict[str, Any]:
    moved: dict[tuple[str, str], list[Segment]] = defaultdict(list)
    texts = {}
    for sound, before in old.segments.items():
        after = new.segments.get(sound)
        if after and after.outcome != before.outcome:
            moved[before.outcome, after.outcome].append(after)
        if after and after.text != before.text:
            texts[after.id] = [before.text, after.text]
    kept = [sum(of.outcome.startswith("kept") for of in part.segments.values()) for part in (old, new)]
    return {
        "kept": kept,
        "added": _by_outcome(of for sound, of in new.segments.items() if sound not in old.segments),
        "removed": _by_outcome(of for sound, of in old.segments.items() if sound not in new.segments),
        "moved": [{"from": pair[0], "to": pair[1], **_amount(found)} for pair, found in sorted(moved.items())],
        "texts": texts,
    }


def _by_outcome(segments: Iterable[Segment]) -> dict[str, Any]:
    found: dict[str, list[Segment]] = defaultdict(list)
    for of in segments:
        found[of.outcome].append(of)
    return {outcome: _amount(own) for outcome, own in sorted(found.items())}


def _amount(segments: list[Segment]) -> dict[str, Any]:
    hours = sum(of.seconds for of in segments) / 3600
    return {"count": len(segments), "hours": round(hours, 5), "ids": sorted(of.id for of in segments)}


def _shards(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Shards, cuts and frames of each split."""
    both = [
        {(split, name): value for split, of in splits.items() for name, value in _counts(of).items()}
        for splits in (old, new)
    ]
    names = sorted({*both[0], *both[1]})
    found: dict[str, Any] = defaultdict(dict)
    for split, name in names:
        found[split][name] = [part.get((split, name), 0) for part in both]
    return {split: found[split] for split in SPLITS if split in found}


def _counts(of: Mapping[str, Any]) -> dict[str, int]:
    return {"shards": len(of["shards"]), "cuts": of["cuts"], "frames": of["frames"]}
