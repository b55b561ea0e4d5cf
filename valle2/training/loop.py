"""Training of the AR and the NAR model: one loop for both (VALL-E 2, arXiv:2406.05370, section 4.1.1).

AdamW, linear warm-up, linear decay. A run that is killed at any step and started again ends with the same bytes as one
that was not. One update is in `valle2.training.step`; what the two models differ in, in `valle2.training.objective`;
what a checkpoint holds, in `valle2.training.checkpoint`; several processes, in `valle2.training.distributed`.
"""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.utils.deterministic as determinism
from torch import Tensor, nn

from valle2.config.train import HOW, TrainConfig, TrainParams
from valle2.errors import Preempted
from valle2.progress import progress
from valle2.shards import read_manifest
from valle2.stage import ARTIFACTS, file_sha256, finish, output, partial
from valle2.text import Bpe
from valle2.training.checkpoint import Checkpoints, TrainState, refuse_other_training
from valle2.training.data import Corpus, collate, pack
from valle2.training.distributed import Ranks, Shared, join_ranks, whole
from valle2.training.efficiency import apply, explained_out_of_memory, keep_freed_memory
from valle2.training.flops import parameter_counts, peak_flops
from valle2.training.loader import Loader, Update
from valle2.training.objective import AR, NAR, CodecFacts, Objective, describe
from valle2.training.outputs import write_outputs
from valle2.training.sampler import Sampler, batch_by_frames
from valle2.training.samples import Gallery, Samples
from valle2.training.step import autocast, learning_rate, native_bf16, train_step
from valle2.training.streaming import stream
from valle2.training.warm_start import warm_start
from valle2.types import Stage, StageResult

FILL = "fill_uninitialized_memory"
"""torch's switch for writing into fresh memory whenever kernels must be deterministic; it costs time for nothing."""


class Tracker(Gallery, Protocol):
    """Where curves go while training; `valle2.training_run.TrainingRun` is one."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add points."""


class _Nowhere:
    """The tracker of all processes but the first."""

    run_id = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing: the first has all figures."""

    def log_audio(self, step: int, name: str, waveform: Any, sample_rate: int) -> None:
        """Nothing."""

    def log_image(self, step: int, name: str, png: bytes) -> None:
        """Nothing."""

    def tag(self, name: str, value: str) -> None:
        """Nothing."""


def train_ar(config: TrainParams) -> StageResult | None:
    """Train the AR model: `artifacts/tokenize/` -> `artifacts/train-ar/`; None from all processes but the first."""
    return _stage(config, AR(config, CodecFacts.of(read_manifest(output("tokenize")))))


def train_nar(config: TrainParams) -> StageResult | None:
    """Train the NAR model: `artifacts/tokenize/` -> `artifacts/train-nar/`; None from all processes but the first."""
    return _stage(config, NAR(config, CodecFacts.of(read_manifest(output("tokenize")))))


def _stage(config: TrainParams, objective: Objective) -> StageResult | None:
    from valle2.tracking import git_commit

    stage: Stage = "train-ar" if objective.kind == "ar" else "train-nar"
    inputs = _inputs(config, objective)
    work = ARTIFACTS / ".partial" / stage
    with join_ranks(config.runtime.device) as ranks:
        if not ranks.is_main:
            ranks.barrier()
            train(config, objective, work, _Nowhere(), inputs=inputs, ranks=ranks)
            return None
        refuse_other_training(work / "checkpoints", inputs)
        with partial(stage, inputs):
            with _tracked(config, objective, work, inputs) as run:
                ranks.barrier()
                facts = train(config, objective, work, run, inputs=inputs, ranks=ranks, about={"commit": git_commit()})
            finish(work, stage)
    figure = f"{facts['steps']} steps, loss {facts['loss']:.3f}, dev {facts.get('valid_loss', math.nan):.3f}"
    return StageResult(figure, facts | {"mlflow_run_id": run.run_id})


def _tracked(config: TrainParams, objective: Objective, work: Path, inputs: Mapping[str, Any]) -> Any:
    from valle2.training_run import training_run

    return training_run(objective.kind, config, inputs["data"]["shards"], work)


def _inputs(config: TrainParams, objective: Objective) -> dict[str, Any]:
    """All that the weights depend on; how many processes there are is not among it, though sums round otherwise."""
    parent = Path(objective.train.warm_start, "model.json") if objective.train.warm_start else None
    return {
        "seed": config.runtime.seed,
        f"train_{objective.kind}": objective.train.model_dump(exclude=HOW),
        "model": {"shape": objective.shape.model_dump(), "group_size": objective.group_size},
        "data": {
            "shards": file_sha256(output("tokenize") / "manifest.json"),
            "tokenizer": file_sha256(output("curate") / "bpe.json"),
        },
        "parent": file_sha256(parent) if parent and parent.is_file() else None,
    }


def train(
    config: TrainParams,
    objective: Objective,
    work: Path,
    tracker: Tracker,
    *,
    inputs: Mapping[str, Any],
    ranks: Ranks | None = None,
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train one model in a work folder, going on from its last checkpoint, and write `out/` there.

    Args:
        config: Parameters.
        objective: Which of the two models.
        work: Folder of packed data and checkpoints; all ranks see it.
        tracker: Gets the curves.
        inputs: All that the weights depend on; a checkpoint of others is refused.
        ranks: The processes that train together; by default this one alone.
        about: What checkpoints say besides.

    Returns:
        Facts for logs and records.

    Raises:
        TrainingError: The data do not fill a batch, the warm start does not fit, or the loss stays non-finite.
        Preempted: The process was asked to end (SIGTERM), and a checkpoint is written.
    """
    settings, ranks = objective.train, ranks or Ranks(device=config.runtime.device)
    bpe_file = output("curate") / "bpe.json"
    codec, bpe = CodecFacts.of(read_manifest(output("tokenize"))), Bpe.load(bpe_file)
    corpus, held_out = open_corpora(ranks, objective, bpe, work / "codes")
    with deterministic(config.runtime.seed, max(1, config.runtime.num_threads // ranks.local_size)):
        sampler = Sampler(
            corpus, settings, objective.shape, codec.frame_rate, config.runtime.seed, objective.kind,
            objective.group_size,
        )  # fmt: skip
        facts: dict[str, Any] = {
            "parent": None,
            "utterances_left_out": corpus.left_out,
            "bf16": native_bf16(torch.device(ranks.device)) and settings.bf16,
            "processes": ranks.world_size,
        }
        model = objective.build(bpe.vocab_size).to(ranks.device).train()
        if settings.warm_start:
            facts["parent"] = warm_start(model, Path(settings.warm_start), objective, codec.codes_digest, bpe_file)
        if ranks.is_main:
            tell_size(objective.kind, model)
        apply(model, settings, objective.kind)
        shared = Shared(model, ranks, settings.strategy, objective.read_blocks)
        state = new_state(model, settings)
        checkpoints = Checkpoints(work / "checkpoints", inputs, settings.keep_checkpoints, ranks, about)
        facts["resumed_at"] = state.step if checkpoints.load(state) else 0
        samples = Samples(objective, codec, bpe, lambda: _weights(state), tracker, ranks.device)
        run = _Run(
            state, shared, sampler, held_out, objective, tracker, checkpoints, ranks, config.runtime.seed, _Speed(),
            samples,
        )  # fmt: skip
        facts |= run.to_the_end()
    weights = {name: whole(value) for name, value in _weights(state).items()}
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    facts |= {"steps": state.step, "skipped": state.skipped, "parameters": parameters}
    if ranks.is_main:
        facts |= write_outputs(work / "out", weights, describe(objective, codec, bpe.vocab_size), state.history)
    ranks.barrier()
    return facts


def open_corpora(ranks: Ranks, objective: Objective, bpe: Bpe, folder: Path) -> tuple[Corpus, Corpus]:
    """The train split, packed or streamed, and the dev split, packed; the first rank writes what the others read."""
    if not ranks.is_main:
        ranks.barrier()
    settings, with_breaks = objective.train, objective.train.word_spans + objective.train.guide > 0
    arguments = bpe, objective.shape, objective.num_codebooks, folder
    if settings.stream_shards:
        corpus = stream("train", *arguments, settings, objective.kind, with_breaks=with_breaks)
    else:
        corpus = pack("train", *arguments, with_breaks=with_breaks)
    held_out = pack("dev", *arguments, with_breaks=with_breaks)
    if ranks.is_main:
        ranks.barrier()
    return corpus, held_out


@dataclass
class _Run:
    """A training on its way."""

    state: TrainState
    shared: Shared
    sampler: Sampler
    held_out: Corpus
    objective: Objective
    tracker: Tracker
    checkpoints: Checkpoints
    ranks: Ranks
    seed: int
    speed: "_Speed"
    samples: Samples

    def to_the_end(self) -> dict[str, Any]:
        """Train to the last step: take batches, step, log, validate, checkpoint.

        Returns:
            How fast it was.
        """
        state, settings, ranks = self.state, self.objective.train, self.ranks
        start, first, frames_before = time.monotonic(), state.step, state.frames
        title = f"train-{self.objective.kind}"
        bar = progress(title, settings.num_steps, "steps", state.step) if ranks.is_main else nullcontext(_no_bar)
        keep_freed_memory()
        with asked_to_end() as asked, self._loader() as loader, bar as advance:
            while state.step < settings.num_steps:
                update = next(loader)
                self._step(update)
                self.speed.count(update, self.objective)
                last = state.step == settings.num_steps
                if state.step % settings.log_every == 0 or last:
                    rate = (state.frames - frames_before) / (time.monotonic() - start)
                    self._log({"frames_per_second": rate, "hours_per_hour": rate / self.sampler.frame_rate})
                if self.held_out.utterances and (state.step % settings.validate_every == 0 or last):
                    self._validate()
                if state.step % settings.checkpoint_every == 0 or last:
                    self.checkpoints.save(state)
                if ranks.is_main and (ranks.world_size == 1 or settings.strategy == "ddp"):
                    self.samples.speak(state.step)  # which takes the whole model
                if ranks.any(bool(asked)) and not last:
                    self._end_early(title)
                figures = next(
                    (one for one in self.state.window if "loss" in one), self.state.history[-1:] and state.history[-1]
                )
                advance(1, f"loss {(figures or {}).get('loss', 0):.3f}, {self._hours(start, frames_before):.1f} h/h")
            self.checkpoints.wait()
        seconds = time.monotonic() - start
        done = state.step - first
        return {
            "seconds_per_step": round(seconds / done, 4) if done else None,
            "frames_per_second": round((state.frames - frames_before) / seconds) if done else None,
            "hours_seen": round(state.frames / self.sampler.frame_rate / 3600, 3),
        }

    def _hours(self, start: float, frames_before: int) -> float:
        """Of audio an hour, since this process began."""
        return (self.state.frames - frames_before) / (time.monotonic() - start) / self.sampler.frame_rate

    def _loader(self) -> Loader:
        settings = self.objective.train
        return Loader(
            self.sampler, self.state.place, accumulate=settings.accumulate, num_workers=settings.num_workers,
            rank=self.ranks.rank, world_size=self.ranks.world_size, kind=self.objective.kind,
        )  # fmt: skip

    def _step(self, update: Update) -> None:
        state = self.state
        batches = [batch.to(self.ranks.device) for batch in update.batches]
        state.place, state.frames = update.place, state.frames + update.num_frames
        with explained_out_of_memory(batches, self.objective.kind):
            train_step(state, self.shared, batches, self.objective, self.ranks, self.seed)
        state.window.append({"padding_share": update.padding_share})

    def _log(self, speed: dict[str, float]) -> None:
        window = [figures for own in self.ranks.gather(self.state.window) for figures in own]
        self.state.window = []
        speed |= self.speed.figures(self.ranks, self.objective.train.bf16)
        self._record(mean(window) | {"learning_rate": learning_rate(self.state.step - 1, self.objective.train)}, speed)

    def _validate(self) -> None:
        point = validate(self.state, self.shared, self.held_out, self.objective, self.ranks)
        self._record(point, {})
        loss = self.state.history[-1]["valid_loss"]
        if math.isfinite(loss) and (self.state.best is None or loss < self.state.best):
            self.state.best = loss

    def _record(self, point: dict[str, float], speed: dict[str, float]) -> None:
        """Add a point to the history, which is an output, and with the speed, which must not be, to the tracker."""
        rounded = {name: round(value, 6) if name != "learning_rate" else value for name, value in point.items()}
        history = self.state.history
        if history and history[-1]["step"] == self.state.step:
            history[-1] |= rounded
        else:
            history.append({"step": self.state.step, **rounded})
        self.tracker.log(self.state.step, point | speed)

    def _end_early(self, title: str) -> None:
        self.checkpoints.save(self.state)
        self.checkpoints.wait()
        raise Preempted(
            f"{title} was asked to end and did, with a checkpoint at step {self.state.step} of "
            f"{self.objective.train.num_steps}; run the same command again, it goes on there"
        )


@dataclass
class _Speed:
    """How fast this process is, since it began."""

    start: float = field(default_factory=time.monotonic)
    tokens: int = 0
    flops: float = 0.0
    waited: float = 0.0

    def count(self, update: Update, objective: Objective) -> None:
        """Add an update."""
        self.waited += update.waited
        for batch in update.batches:
            self.tokens += int(batch.text_lengths.sum() + (batch.code_lengths // objective.group_size).sum())
            self.flops += objective.flops(batch)

    def figures(self, ranks: Ranks, bf16: bool) -> dict[str, float]:
        """Of all processes together; `mfu` where the device's peak is known."""
        seconds = time.monotonic() - self.start
        tokens, flops, waited = ranks.sum([float(self.tokens), self.flops, self.waited])
        found = {"tokens_per_second": tokens / seconds, "data_wait_share": waited / seconds / ranks.world_size}
        device = torch.device(ranks.device)
        if peak := peak_flops(device, bf16=bf16 and native_bf16(device)):
            found["mfu"] = flops / seconds / (peak * ranks.world_size)
        return found


def tell_size(kind: str, model: nn.Module) -> None:
    """Print how many parameters a model has."""
    counts = parameter_counts(model)
    print(
        f"train-{kind}: {counts['parameters'] / 1e6:.1f} M parameters, {counts['block_parameters'] / 1e6:.1f} M "
        "of them in the blocks",
        flush=True,
    )


def _no_bar(amount: float = 1.0, note: str = "") -> None:
    """The first process has the bar."""


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """A list that is empty until the process gets SIGTERM, as schedulers send it some time before they kill."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not in the main thread
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@torch.no_grad()
def validate(
    state: TrainState, shared: Shared, held_out: Corpus, objective: Objective, ranks: Ranks
) -> dict[str, float]:
    """Figures on the dev split, with the averaged weights where there are some; each rank has its share of batches."""
    rows = [[utterance] for utterance in sorted(held_out.utterances, key=lambda one: one.num_frames)]
    settings = objective.train
    batches = list(batch_by_frames(rows, settings.batch_frames))
    own = batches[ranks.rank :: ranks.world_size]
    # All have to call the model equally often; what is too many counts for nothing.
    own += batches[:1] * (-(-len(batches) // ranks.world_size) - len(own))
    total: dict[str, float] = {}
    with averaged(state):
        state.model.eval()
        for number, batch_rows in enumerate(own):
            batch = collate(held_out, batch_rows, objective.group_size).to(ranks.device)
            with autocast(batch.text.device, settings.bf16):
                figures = shared(objective.validate, batch)
            counts = ranks.rank + number * ranks.world_size < len(batches)
            share = batch.num_frames / held_out.num_frames if counts else 0.0
            for name, value in figures.items():
                total[f"valid_{name}"] = total.get(f"valid_{name}", 0.0) + value.item() * share
        state.model.train()
    return dict(zip(total, ranks.sum([*total.values()]), strict=True))


@contextmanager
def averaged(state: TrainState) -> Iterator[None]:
    """The model with the averaged weights, if there are some."""
    current = {name: state.model.get_parameter(name).detach().clone() for name in state.average}
    with torch.no_grad():
        for name, value in state.average.items():
            state.model.get_parameter(name).copy_(value)
        try:
            yield
        finally:
            for name, value in current.items():
                state.model.get_parameter(name).copy_(value)


def new_state(model: nn.Module, settings: TrainConfig) -> TrainState:
    """A model and its optimiser before the first step."""
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    average = {name: value.detach().clone() for name, value in model.named_parameters()} if settings.ema_decay else {}
    return TrainState(model, optimiser, average)


@contextmanager
def deterministic(seed: int, num_threads: int) -> Iterator[None]:
    """The same numbers in every run on the same machine: seed, threads, and no kernel whose order of sums varies."""
    before = torch.are_deterministic_algorithms_enabled(), getattr(determinism, FILL)
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    setattr(determinism, FILL, False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        setattr(determinism, FILL, before[1])


def mean(figures: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over those that have it and are finite."""
    names = dict.fromkeys(name for one in figures for name in one)
    return {name: _finite_mean([one[name] for one in figures if name in one]) for name in names}


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _weights(state: TrainState) -> dict[str, Tensor]:
    """What is spoken with and kept: the averaged weights where there are some."""
    return state.average or dict(state.model.state_dict())
