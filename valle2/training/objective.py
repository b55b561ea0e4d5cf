"""What differs between training the AR and the NAR model: how a model is built, and what its loss is on a batch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from valle2.config.model import TransformerConfig
from valle2.config.train import TrainConfig, TrainParams
from valle2.model.ar import ARModel
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel, draw_condition_lengths
from valle2.training.data import Batch
from valle2.training.flops import ar_flops, nar_flops

Kind = Literal["ar", "nar"]


@dataclass(frozen=True)
class CodecFacts:
    """What the shards' manifest says of the codec."""

    name: str
    digest: str
    codes_digest: str
    sample_rate: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> "CodecFacts":
        """Read the manifest's head."""
        rest = {name: manifest[name] for name in ("sample_rate", "frame_rate", "num_codebooks", "codebook_size")}
        rest["frame_rate"] = float(rest["frame_rate"])
        return cls(**manifest["codec"], **rest)


class Objective(Protocol):
    """One of the two models' training."""

    kind: Kind
    train: TrainConfig
    shape: TransformerConfig
    num_codebooks: int
    group_size: int
    weights: dict[str, float]
    """What is minimised: figures of `loss` and their weights."""
    read_blocks: tuple[int, ...]
    """Blocks whose weights `loss` reads from outside of them."""

    def build(self, vocab_size: int) -> nn.Module:
        """A model with random weights."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`loss` and other figures of a training batch; random choices are torch's."""

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The same on a held-out batch, without random choices."""

    def flops(self, batch: Batch) -> float:
        """Of one training step on a batch, forward and backward; see `valle2.training.flops`."""


class AR:
    """Codebook 0, autoregressively (3.3.1)."""

    kind: Kind = "ar"
    num_codebooks = 1

    def __init__(self, config: TrainParams, codec: CodecFacts) -> None:
        self.train, self.shape, self.group_size = config.train_ar, config.model.ar, config.model.group_size
        self.codebook_size = codec.codebook_size
        self.weights = {"loss": 1.0} | (dict.fromkeys(("guide", "word"), self.train.guide) if self.train.guide else {})
        self.read_blocks: tuple[int, ...] = (self.shape.num_layers // 2,) if self.train.guide else ()

    def build(self, vocab_size: int) -> ARModel:
        return ARModel(TransformerShape(**self.shape.model_dump()), vocab_size, self.group_size, self.codebook_size)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self._loss(model, batch, slots=False)

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The same, and the loss of each place in a group, `loss_slot_0` and so on."""
        return self._loss(model, batch, slots=True)

    def _loss(self, model: nn.Module, batch: Batch, slots: bool) -> dict[str, Tensor]:
        assert isinstance(model, ARModel)
        words = (batch.text_words, batch.code_words) if self.train.guide else None
        return model.loss(batch.text, batch.text_lengths, batch.codes[:, 0], batch.code_lengths, words, slots)

    def flops(self, batch: Batch) -> float:
        lengths = batch.text_lengths.tolist(), batch.code_lengths.tolist()
        return ar_flops(TransformerShape(**self.shape.model_dump()), *lengths, self.group_size, self.codebook_size)


class NAR:
    """Codebooks 1-7, one drawn for each batch (3.3.2), evenly unless `early_codebooks` says otherwise."""

    kind: Kind = "nar"
    group_size = 1
    read_blocks: tuple[int, ...] = ()

    def __init__(self, config: TrainParams, codec: CodecFacts) -> None:
        self.train, self.shape = config.train_nar, config.model.nar
        self.num_codebooks, self.codebook_size = codec.num_codebooks, codec.codebook_size
        self.frame_rate = codec.frame_rate
        self.weights = {"loss": 1.0}
        self.draws = torch.arange(1, codec.num_codebooks, dtype=torch.float) ** -self.train.early_codebooks

    def build(self, vocab_size: int) -> NARModel:
        return NARModel(TransformerShape(**self.shape.model_dump()), vocab_size, self.num_codebooks, self.codebook_size)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        codebook = 1 + int(torch.multinomial(self.draws, 1))
        condition = draw_condition_lengths(batch.code_lengths, self.frame_rate)
        return self._loss(model, batch, codebook, condition)

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All codebooks, behind a condition of 3 s or half."""
        condition = (batch.code_lengths // 2).clamp(max=round(3 * self.frame_rate))
        each = [self._loss(model, batch, codebook, condition) for codebook in range(1, self.num_codebooks)]
        figures = {name: torch.stack([one[name] for one in each]).mean() for name in ("loss", "top1", "top10")}
        for one in each:
            figures |= {name: value for name, value in one.items() if name not in figures}
        return figures

    def flops(self, batch: Batch) -> float:
        lengths = batch.text_lengths.tolist(), batch.code_lengths.tolist()
        return nar_flops(TransformerShape(**self.shape.model_dump()), *lengths, codebook_size=self.codebook_size)

    def _loss(self, model: nn.Module, batch: Batch, codebook: int, condition: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, NARModel)
        figures = model.loss(batch.text, batch.text_lengths, batch.codes, batch.code_lengths, codebook, condition)
        return figures | {f"loss_codebook_{codebook}": figures["loss"].detach()}


def describe(objective: Objective, codec: CodecFacts, vocab_size: int) -> dict[str, Any]:
    """The `config.json` beside the weights: all that is needed to build the model again."""
    return {
        "kind": objective.kind,
        "transformer": objective.shape.model_dump(),
        "group_size": objective.group_size,
        "vocab_size": vocab_size,
        "codec": asdict(codec),
    }
