"""Which sentences are synthesised, and with which prompts (VALL-E 2, arXiv:2406.05370, section 4.1.2).

A case is a text, a prompt of an unseen speaker and, where the text is the speaker's, the speaker's own reading of it.
How they are drawn is the protocol's (`valle2.evaluation.protocol`); how they are scored is in
`valle2.evaluation.evaluate`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy

from valle2.asr import ASR_RATE, Window
from valle2.config.evaluate import EvaluateParams
from valle2.errors import EvaluationError
from valle2.evaluation.protocol import Protocol, load_protocols
from valle2.shards import load_codes, read_cuts, read_manifest, read_shards
from valle2.stage import digest
from valle2.text import normalise
from valle2.types import Seconds

WORD_SLACK = 0.02
"""Seconds kept after the prompt's last word: one frame of the aligner."""


@dataclass(frozen=True)
class Prompt:
    """Enrolled speech, and what it says."""

    cut_ids: tuple[str, ...]
    text: str
    wave: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Case:
    """A text to say in a voice.

    Attributes:
        id: Of this case alone, over all protocols; fit for a file's name.
        speaker: Whose voice.
        text: What the model is to say.
        prompt: What it hears.
        protocol: By which it was drawn.
        seed: Of its random draws.
        reference: The speaker's own reading; None where there is none.
        codes: The codec's codes of the reference, where they are known.
        category: Of the text, such as `numbers`; None where there are none.
        said_before: Where the prompt is the beginning of the utterance itself, what it says: the whole utterance,
            prompt included, is then scored too, and `reference` holds all of it.
    """

    id: str
    speaker: str
    text: str
    prompt: Prompt
    protocol: str = "unseen"
    seed: int = 0
    reference: Float[np.ndarray, " n"] | None = None
    codes: Int16[np.ndarray, "k t"] | None = None
    category: str | None = None
    said_before: str | None = None

    @property
    def whole_text(self) -> str:
        """All that the utterance says, the beginning included that was the prompt."""
        return " ".join(part for part in (self.said_before, self.text) if part)


@dataclass(frozen=True)
class Source:
    """What a protocol's cuts are taken from.

    Attributes:
        shards: A tokenize output, whose train split no speaker may be in.
        sample_rate: Hz of all waves.
        language: ISO 639-1 code of the texts.
        aligner: As in `transcribe.aligner`, for utterances without word times.
        seed: Of draws and cases.
    """

    shards: Path
    sample_rate: int
    language: str = "en"
    aligner: str = "bundled"
    seed: int = 0


def choose_cases(shards: Path, config: EvaluateParams) -> list[Case]:
    """The cases of all protocols in their order, the same ones each time.

    Args:
        shards: A tokenize output.
        config: Names the protocols, the language, the aligner and the seed.

    Raises:
        ConfigError: A protocol is not valid.
        EvaluationError: One has no case, a speaker is also in train, or a CutSet cannot be read.
    """
    source = Source(
        shards, read_manifest(shards)["sample_rate"], config.transcribe.language, config.transcribe.aligner,
        config.runtime.seed,
    )  # fmt: skip
    cases: list[Case] = []
    for place, protocol in enumerate(load_protocols(config.evaluate)):
        drawn = draw(protocol, source)
        cases += drawn if place == 0 else [replace(case, id=f"{protocol.name}.{case.id}") for case in drawn]
    _assert_unique(cases)
    return cases


def cases_digest(cases: Iterable[Case]) -> str:
    """SHA-256 of what was asked: texts, prompts, seeds and references."""
    return digest([
        [case.id, case.protocol, case.speaker, case.text, case.prompt.text, case.seed, case.category, case.said_before,
         digest(case.prompt.wave.tolist()), None if case.reference is None else digest(case.reference.tolist())]
        for case in cases
    ])  # fmt: skip


def draw(protocol: Protocol, source: Source) -> list[Case]:
    """The cases of one protocol.

    Raises:
        EvaluationError: There is none, a speaker is also in train, or its CutSet cannot be read.
    """
    cuts = _read(protocol, source)
    speakers: dict[str, list[Cut]] = {}
    for cut in sorted(cuts, key=lambda cut: cut.id):
        speakers.setdefault(cut.supervisions[0].speaker, []).append(cut)
    assert_unseen(source.shards, cuts)
    if protocol.prompt == "random":
        cases = list(_read_aloud(protocol, source, speakers))
    else:
        queues = [_PAIRS[protocol.prompt](cuts, protocol, source) for _, cuts in sorted(speakers.items())]
        # Round by round, one sentence a speaker, so that every speaker has the same number or one fewer.
        rounds = [pair for turn in zip_longest(*queues) for pair in turn if pair]
        cases = [_case(protocol, source, *pair) for pair in rounds[: protocol.num_cases]]
    if not cases:
        raise EvaluationError(
            f"no case for protocol {protocol.name}: {len(speakers)} unseen speakers in {protocol.cuts or source.shards}"
            f", none with one utterance of {protocol.min_target_seconds:g}-{protocol.max_target_seconds:g} s and a "
            "prompt; widen `evaluate.min_target_seconds` and `max_target_seconds`, or name more "
            "`curate.test_speakers`"
        )
    return [replace(case, seed=source.seed + place) for place, case in enumerate(cases)]


def assert_unseen(shards: Path, cuts: Sequence[Cut]) -> None:
    """No speaker or recording of an evaluation may be heard in training.

    Raises:
        EvaluationError: One is.
    """
    speakers = {cut.supervisions[0].speaker for cut in cuts}
    recordings = {cut.recording_id for cut in cuts}
    for row in read_cuts(shards, "train"):
        where = f"the test and the train split (cut {row['id']} of {shards}); figures would flatter: "
        heard = {supervision["speaker"] for supervision in row["supervisions"]} & speakers
        if heard:
            raise EvaluationError(
                f"speaker {min(heard)} is in {where}run `valle2 curate` and `valle2 tokenize` again, "
                "or take the speaker out of the protocol's CutSet"
            )
        if (row.get("recording") or {}).get("id") in recordings:
            raise EvaluationError(
                f"recording {row['recording']['id']} is in {where}take it out of the protocol's CutSet"
            )


def cut_prompt(cut: Cut, seconds: Seconds, language: str) -> tuple[str, Seconds]:
    """Where a prompt of at most `seconds` ends, at a word's end, and its text up to there.

    Returns:
        Text and end; an empty text if not even one word fits.
    """
    if cut.duration <= seconds:
        return cut.supervisions[0].text, cut.duration
    fitting = [word for word in _words(cut) if word.end <= seconds]
    if not fitting:
        return "", 0.0
    text = normalise(" ".join(word.symbol for word in fitting), language)
    return text, min(fitting[-1].end + WORD_SLACK, seconds)


def choose_prompt(others: list[Cut], seconds: Seconds) -> list[Cut]:
    """The first utterance that is long enough, else as many as fit, in their order.

    Args:
        others: Utterances to choose from, of one speaker.
        seconds: Length of a prompt.

    Returns:
        None only where there are no others.
    """
    enough = [cut for cut in others if cut.duration >= seconds]
    if enough:
        return enough[:1]
    chosen: list[Cut] = []
    for cut in others:
        if sum(one.duration for one in chosen) + cut.duration <= seconds:
            chosen.append(cut)
    return chosen


Pairs = list[tuple[Cut, list[Cut]]]
"""Targets of one speaker, each with the utterances of its prompt."""


def _another(cuts: list[Cut], protocol: Protocol, source: Source) -> Pairs:
    """Each prompt from the utterances after its target."""
    able = [cut for cut in cuts if cut_prompt(cut, protocol.prompt_seconds, source.language)[0]]
    pairs = []
    for target in _targets(cuts, protocol):
        place = cuts.index(target)
        others = [cut for cut in able if cut.id != target.id and _text(cut) != _text(target)]
        # Cyclic order from the target on: every prompt gets its turn.
        others.sort(key=lambda cut: (cuts.index(cut) - place) % len(cuts))
        if others:
            pairs.append((target, choose_prompt(others, protocol.prompt_seconds)))
    return pairs


def _itself(cuts: list[Cut], protocol: Protocol, source: Source) -> Pairs:
    """Targets of which something is left to say after the prefix."""
    return [(cut, [cut]) for cut in _targets(cuts, protocol) if all(_split_prefix(cut, protocol, source))]


def _previous(cuts: list[Cut], protocol: Protocol, source: Source) -> Pairs:
    """The whole utterance before it in the official order, which is that of the ids; before the first the last.

    The paper's set is the utterances of 4 to 10 s, so that prompts are, too.
    """
    targets = _targets(cuts, protocol)
    return [(cut, [targets[place - 1]]) for place, cut in enumerate(targets) if len(targets) > 1]


def _closest(cuts: list[Cut], protocol: Protocol, source: Source) -> Pairs:
    """One prompt a speaker: the utterance next below the length asked for."""
    below = [cut for cut in cuts if cut.duration <= protocol.prompt_seconds]
    if not below:
        return []
    prompt = max(below, key=lambda cut: cut.duration)
    targets = [cut for cut in _targets(cuts, protocol) if cut.id != prompt.id and _text(cut) != _text(prompt)]
    return [(target, [prompt]) for target in targets]


_PAIRS = {"utterance": _another, "prefix": _itself, "previous": _previous, "closest": _closest}


def _targets(cuts: list[Cut], protocol: Protocol) -> list[Cut]:
    return [cut for cut in cuts if protocol.min_target_seconds <= cut.duration <= protocol.max_target_seconds]


def _split_prefix(cut: Cut, protocol: Protocol, source: Source) -> tuple[str, str]:
    """What an utterance says before and after the end of its prefix; a word that is cut through is said after it."""
    words = _words(cut)
    parts = (
        [word.symbol for word in words if word.end <= protocol.prompt_seconds],
        [word.symbol for word in words if word.end > protocol.prompt_seconds],
    )
    before, after = (normalise(" ".join(part), source.language) for part in parts)
    return before, after


def _case(protocol: Protocol, source: Source, target: Cut, sources: list[Cut]) -> Case:
    text, said_before = _text(target), None
    if protocol.prompt == "prefix":
        said_before, text = _split_prefix(target, protocol, source)
        wave = _wave(target, source)[: round(protocol.prompt_seconds * source.sample_rate)]
        prompt = Prompt((target.id,), said_before, wave)
    elif protocol.prompt == "utterance":
        prompt = _prompt(sources, protocol.prompt_seconds, source)
    else:
        prompt = _prompt(sources, float("inf"), source)
    return Case(
        re.sub(r"[^\w.-]", "_", target.id), target.supervisions[0].speaker, text, prompt, protocol.name,
        reference=_wave(target, source), codes=load_codes(target) if target.has_custom("codes") else None,
        said_before=said_before,
    )  # fmt: skip


def _read_aloud(protocol: Protocol, source: Source, speakers: Mapping[str, list[Cut]]) -> Iterator[Case]:
    """Texts of the protocol's own, category by category in turn, each with a prompt drawn by seed."""
    cuts = [cut for _, own in sorted(speakers.items()) for cut in own]
    able = [cut for cut in cuts if cut_prompt(cut, protocol.prompt_seconds, source.language)[0]]
    turns = zip_longest(*([(category, text) for text in texts] for category, texts in protocol.texts.items()))
    order = [item for turn in turns for item in turn if item][: protocol.num_cases]
    counts: dict[str, int] = {}
    for place, (category, text) in enumerate(order if able else []):
        counts[category] = counts.get(category, 0) + 1
        chosen = able[np.random.default_rng([source.seed, place]).integers(len(able))]
        prompt = _prompt([chosen], protocol.prompt_seconds, source)
        speaker = chosen.supervisions[0].speaker
        yield Case(f"{category}-{counts[category]:02d}", speaker, text, prompt, protocol.name, category=category)


def _prompt(cuts: list[Cut], seconds: Seconds, source: Source) -> Prompt:
    """Utterances behind one another, each up to a word's end within `seconds`."""
    said = [(cut, *cut_prompt(cut, seconds, source.language)) for cut in cuts]
    waves = [_wave(cut, source)[: round(end * source.sample_rate)] for cut, _, end in said]
    return Prompt(tuple(cut.id for cut in cuts), " ".join(text for _, text, _ in said), np.concatenate(waves))


def _read(protocol: Protocol, source: Source) -> list[Cut]:
    """The protocol's utterances; word times are added where its prompts need them and there are none."""
    cuts = list(read_shards(source.shards, "test")) if protocol.cuts is None else _read_set(Path(protocol.cuts), source)
    if protocol.prompt in ("utterance", "prefix", "random"):
        untimed = [cut for cut in cuts if not _words(cut) and cut.duration > protocol.prompt_seconds]
        if untimed:
            timed = {cut.id: cut for cut in _time_words(untimed, source)}
            cuts = [timed.get(cut.id, cut) for cut in cuts]
    return cuts


def _read_set(path: Path, source: Source) -> list[Cut]:
    """Any Lhotse CutSet, one utterance with speaker and text a cut, at the rate of the shards."""
    if not path.is_file():
        raise EvaluationError(f"no CutSet at {path}; `cuts` of a protocol names a Lhotse manifest, .jsonl or .jsonl.gz")
    try:
        cuts = [cut.resample(source.sample_rate) for cut in CutSet.from_file(path)]
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, OSError, EOFError) as error:
        raise EvaluationError(f"{path} cannot be read as a Lhotse CutSet ({' '.join(str(error).split())})") from error
    for cut in cuts:
        said = cut.supervisions
        if len(said) != 1 or not said[0].speaker or not normalise(said[0].text or "", source.language):
            raise EvaluationError(
                f"cut {cut.id} of {path} has {len(said)} supervisions; expected one a cut, with speaker and text: "
                "`CutSet.trim_to_supervisions()` makes them"
            )
    if not cuts:
        raise EvaluationError(f"the CutSet {path} is empty; a protocol needs utterances")
    return cuts


def _time_words(cuts: list[Cut], source: Source) -> list[Cut]:
    """The same cuts with word times, by the aligner of `transcribe`."""
    from valle2.aligner import load_aligner

    aligner = load_aligner(source.aligner, source.language)
    waves = [cut.resample(ASR_RATE).load_audio()[0].astype(np.float32) for cut in cuts]
    windows = [Window(normalise(_text(cut), source.language), 0.0, cut.duration) for cut in cuts]
    timed = []
    for cut, sentences in zip(cuts, aligner.align(windows, waves), strict=True):
        words = [word for sentence in sentences for word in sentence.words]
        items = [
            AlignmentItem(word.text, word.start, word.end - word.start)
            for word in words
            if word.start is not None and word.end is not None
        ]
        supervision = cut.supervisions[0].with_alignment("word", items if len(items) == len(words) else [])
        timed.append(fastcopy(cut, supervisions=[supervision]))
    return timed


def _words(cut: Cut) -> list[AlignmentItem]:
    return (cut.supervisions[0].alignment or {}).get("word", [])


def _text(cut: Cut) -> str:
    return str(cut.supervisions[0].text)


def _wave(cut: Cut, source: Source) -> Float[np.ndarray, " n"]:
    if cut.sampling_rate != source.sample_rate:
        cut = cut.resample(source.sample_rate)
    return cut.load_audio()[0].astype(np.float32)


def _assert_unique(cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise EvaluationError(f"two cases are called {case.id}; give the utterances of the CutSet ids of their own")
        seen.add(case.id)
