"""Train, dev and test that share no speaker and no recording, and the gate that nothing leaks between them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from valle2.errors import ConfigError, SourceError
from valle2.types import SPLITS, Split


class Segment(Protocol):
    """What must not be in two splits."""

    @property
    def id(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def speaker(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def text(self) -> str: ...


Chosen = tuple[str, ...] | int


def split_speakers(speakers: Iterable[tuple[str, str]], test: Chosen, dev: Chosen, seed: int) -> dict[str, Split]:
    """Give each speaker one split, and all who speak in one recording the same.

    A count draws by a hash of seed and name: a speaker's draw does not depend on who else is there, so new speakers
    hardly move the old ones.

    Args:
        speakers: Names, each with a recording that it speaks in; as many times as there are recordings.
        test: Names, or how many to draw; whoever shares a recording with one goes along, so that there may be fewer or,
            if nobody is alone, more.
        dev: Names, or how many to draw among the rest.
        seed: Of the draw.

    Raises:
        ConfigError: A name that is not there or in both, or too few speakers.
    """
    groups = together(speakers)
    names = sorted(groups)
    chosen: dict[str, Split] = {}
    _choose(chosen, groups, "test", test, seed)
    _choose(chosen, groups, "dev", dev, seed)
    if len(chosen) == len(names):
        raise ConfigError(
            f"{len(names)} speakers ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}) leave none for train "
            f"after {_count(test)} for test and {_count(dev)} for dev; lower `curate.test_speakers` and "
            "`curate.dev_speakers` or bring more speakers"
        )
    return {name: chosen.get(name, "train") for name in names}


def together(speakers: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Of each speaker, who has to be in the same split: all whom recordings link to it, itself among them, sorted.

    Args:
        speakers: Names, each with a recording that it speaks in.
    """
    first: dict[str, str] = {}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for name, recording in speakers:
        parent.setdefault(name, name)
        one, other = root(name), root(first.setdefault(recording, name))
        parent[max(one, other)] = min(one, other)
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(parent):
        members[root(name)].append(name)
    return {name: tuple(members[root(name)]) for name in sorted(parent)}


def _choose(
    chosen: dict[str, Split], groups: Mapping[str, tuple[str, ...]], split: Split, wanted: Chosen, seed: int
) -> None:
    names = list(groups)
    if isinstance(wanted, int):
        free = [name for name in names if name not in chosen]
        if wanted > len(free):
            raise ConfigError(
                f"`curate.{split}_speakers` asks for {wanted} speakers and {len(free)} of {len(names)} are free; lower "
                "it or bring more speakers"
            )
        chosen.update(dict.fromkeys(_drawn({groups[name] for name in free}, wanted, seed), split))
        return
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise ConfigError(
            f"`curate.{split}_speakers` names {', '.join(missing)}, of whom no segment is left; there are "
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; correct the names or give a number"
        )
    taken = sorted(set(wanted) & set(chosen))
    if taken:
        raise ConfigError(
            f"`curate.{split}_speakers` names {', '.join(taken)}, who are in test already, themselves or because they "
            "share a recording with one who is; keep one"
        )
    chosen.update(dict.fromkeys((name for one in wanted for name in groups[one]), split))


def _drawn(groups: Iterable[tuple[str, ...]], wanted: int, seed: int) -> list[str]:
    """Whole groups, no more speakers than wanted; the smallest group if each is too many."""
    order = sorted(groups, key=lambda group: _draw(seed, group[0]))
    drawn: list[str] = []
    for group in order:
        if len(drawn) + len(group) <= wanted:
            drawn += group
    if wanted and not drawn:
        smallest = min(order, key=len)
        drawn += smallest
    return drawn


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _count(chosen: Chosen) -> int:
    return chosen if isinstance(chosen, int) else len(chosen)


def leaked_texts(train: Iterable[str], held_out: Iterable[str]) -> set[str]:
    """Normalised sentences that train shares with dev or test."""
    return set(train) & set(held_out)


def check_leakage(splits: Mapping[Split, Sequence[Segment]]) -> dict[str, int]:
    """The gate: no utterance, recording, speaker or sound in two splits, no dev or test sentence in train.

    Returns:
        How many of each were compared, all of them disjoint.

    Raises:
        SourceError: Something is in two splits; the message names it.
    """
    kinds: dict[str, Callable[[Segment], str]] = {
        "utterance": lambda item: item.id,
        "recording": lambda item: item.sha256,
        "speaker": lambda item: item.speaker,
        "duplicate group": lambda item: item.group,
    }
    compared: dict[str, int] = {}
    for kind, value in kinds.items():
        where: dict[str, set[Split]] = defaultdict(set)
        for split in SPLITS:
            for item in splits[split]:
                where[value(item)].add(split)
        for found, places in sorted(where.items()):
            if len(places) > 1:
                raise SourceError(
                    f"the splits leak: {kind} {found} is in {' and '.join(sorted(places))}; nothing was written. Check "
                    "that a speaker has one name only in the speakers files"
                )
        compared[f"{kind.replace(' ', '_')}s"] = len(where)
    texts = {split: {item.text for item in splits[split]} for split in SPLITS}
    shared = leaked_texts(texts["train"], texts["dev"] | texts["test"])
    if shared:
        raise SourceError(
            f"the splits leak: the sentence {min(shared)!r} is in train and held out; nothing was written"
        )
    compared["sentences"] = len(texts["train"] | texts["dev"] | texts["test"])
    return compared
