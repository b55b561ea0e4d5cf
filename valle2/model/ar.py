"""The autoregressive model: text and earlier groups -> the next group of codebook 0's codes.

VALL-E 2, arXiv:2406.05370, sections 3.2 and 3.3.1. Sampling is in `valle2.model.sampling`; the other seven codebooks
in `valle2.model.nar`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from valle2.model.grouping import fold
from valle2.model.layers import (
    Block,
    KVCache,
    PositionEmbedding,
    Transformer,
    TransformerShape,
    attended_shares,
    initialise,
    join,
    length_mask,
)

WORD_SCALE = 3.0
"""Of the scores of a heard word: embeddings start small, and a unit scale would start with nearly no gradient."""


class ARModel(nn.Module):
    """P(group | text, earlier groups), with codes independent inside a group (3.3.1).

    Input: E_text || eos, bos || E_group, causal over everything. The two separators are vectors of their own; the
    paper does not say which table they come from, nor whether they have positions (ours have none).
    """

    def __init__(self, shape: TransformerShape, vocab_size: int, group_size: int, codebook_size: int = 1024) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.group_size = shape, vocab_size, group_size
        self.eos = codebook_size
        """The code that ends an utterance; it is predicted, never read."""
        dim = shape.dim
        self.text_embedding = nn.Embedding(vocab_size, dim)
        self.text_positions = PositionEmbedding(shape.max_text_tokens, dim, "text tokens")
        self.separators = nn.Parameter(torch.empty(2, dim))
        self.code_embedding = nn.Embedding(codebook_size + 1, dim)
        self.group_positions = PositionEmbedding(shape.max_frames // group_size, dim, f"groups of {group_size}")
        if group_size > 1:
            self.group_embedding = nn.Linear(group_size * dim, dim, bias=False)
            self.group_prediction = nn.Linear(dim, group_size * dim)
        self.transformer = Transformer(shape, causal=True)
        self.spare_steps: list[Any] = []
        """On a GPU, the `valle2.model.step.ARStep` of the last batch, for the next one."""
        initialise(self, shape.num_layers)
        if group_size > 1:
            for layer in (self.group_embedding, self.group_prediction):
                nn.init.xavier_normal_(layer.weight)

    def loss(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b t"],
        code_lengths: Int[Tensor, "b"],
        words: tuple[Int[Tensor, "b s"], Int[Tensor, "b t"]] | None = None,
        slots: bool = False,
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean negative log-likelihood over codes, EOS included (equation of 3.3.1).

        Args:
            text: BPE tokens, padded on the right with anything.
            text_lengths: Tokens in each row.
            codes: Codebook 0, padded on the right with anything; t and all lengths are multiples of G.
            code_lengths: Frames in each row.
            words: Which word each token belongs to and which is spoken in each frame, from 1; 0 is padding.
            slots: Whether to tell the loss of each place in a group apart: `loss_slot_0` to `loss_slot_{G-1}`, whose
                mean is `loss`.

        Returns:
            `loss` in nats per code, and the shares of codes that were `top1` and among the `top10`. With `words`, also
            `guide` and `word`, see `_guidance`.
        """
        groups = fold(codes, self.group_size)
        lengths = code_lengths // self.group_size
        x, starts = self.embed(text, text_lengths, groups, lengths)
        read: list[Tensor] = []
        hidden = self.transformer(x, inputs=read)
        # The state at bos predicts the first group, that at the last group a whole group of EOS.
        place = torch.arange(groups.shape[1] + 1, device=x.device)
        predicts = length_mask(lengths + 1, groups.shape[1] + 1)
        rows, columns = (place + starts[2][:, None] - 1)[predicts], predicts.nonzero()[:, 0]
        logits = self.logits(hidden[columns, rows])
        targets = F.pad(groups, (0, 0, 0, 1)).masked_fill((place == lengths[:, None])[..., None], self.eos)
        wanted = targets[predicts]
        figures = code_loss(logits.flatten(0, 1), wanted.flatten())
        if slots:
            each = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none")
            by_slot = each.view(wanted.shape).mean(0)
            figures |= {f"loss_slot_{slot}": value for slot, value in enumerate(by_slot)}
        if words is not None:
            figures |= self._guidance(read, text, starts[2], words)
        return figures

    def _guidance(
        self,
        read: list[Float[Tensor, "b n d"]],
        text: Int[Tensor, "b s"],
        starts: Int[Tensor, "b"],
        words: tuple[Int[Tensor, "b s"], Int[Tensor, "b t"]],
    ) -> dict[str, Float[Tensor, ""]]:
        """How well the middle block knows its place in the text. (Not in the paper.)

        Args:
            read: What each block reads.
            text: BPE tokens.
            starts: Where in each row the groups start.
            words: As in `loss`.

        Returns:
            `guide`: what one head gives to the tokens of the word that comes next, as a mean negative logarithm (guided
            attention, after Tachibana et al., 2018, section 4.2); and `word`: the cross-entropy of the word that was
            just heard, told by its first token's embedding. A place is kept by hearing what was said.
        """
        middle = len(read) // 2
        block = self.transformer.blocks[middle]
        assert isinstance(block, Block)
        spoken = fold(words[1], self.group_size)[..., 0]
        right = (spoken[..., None] == words[0][:, None]) & (spoken > 0)[..., None]
        known = right.any(-1)
        place = torch.arange(spoken.shape[1], device=text.device) + starts[:, None]
        heard = place.clamp(max=read[middle].shape[1] - 1)
        shares = attended_shares(block, read[middle], heard - 1, text.shape[1])
        rows, groups = known.nonzero(as_tuple=True)
        state = read[middle][rows, heard[rows, groups]].float()
        scores = WORD_SCALE * F.layer_norm(state, state.shape[-1:]) @ self.text_embedding.weight.T
        first_token = text.gather(1, right.to(torch.uint8).argmax(-1))[known]
        return {
            "guide": -shares.masked_fill(~right, -torch.inf).logsumexp(-1)[known].mean(),
            "word": F.cross_entropy(scores.float(), first_token),
        }

    def embed(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        groups: Int[Tensor, "b g {self.group_size}"],
        group_lengths: Int[Tensor, "b"],
    ) -> tuple[Float[Tensor, "b n d"], list[Int[Tensor, "b"]]]:
        """E_text || eos, bos || E_group with padding on the right; and where in each row each of the three starts."""
        separators = self.separators.expand(len(text), -1, -1)
        return join(
            [
                (self.text_positions(self.text_embedding(text)), text_lengths),
                (separators, torch.full_like(text_lengths, 2)),
                (self.group_positions(self.embed_groups(groups)), group_lengths),
            ]
        )

    def embed_groups(self, groups: Int[Tensor, "*b {self.group_size}"]) -> Float[Tensor, "*b d"]:
        """One vector per group: W_g on the joined code embeddings, or the code embedding itself where G = 1."""
        embeddings = self.code_embedding(groups).flatten(-2)
        return self.group_embedding(embeddings) if self.group_size > 1 else embeddings

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n {self.group_size} v"]:
        """Scores of the codes, EOS last, for each slot of a group; the head is the code embedding, tied (3.2)."""
        if self.group_size > 1:
            hidden = self.group_prediction(hidden)
        return hidden.unflatten(-1, (self.group_size, -1)) @ self.code_embedding.weight.T

    def prefill(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b t"],
        code_lengths: Int[Tensor, "b"],
        num_new_groups: int = 0,
        cache: KVCache | None = None,
    ) -> tuple[Float[Tensor, "b {self.group_size} v"], KVCache]:
        """Read text and prompt.

        Args:
            text: As in `loss`: the prompt's transcript, then the text to speak.
            text_lengths: Tokens in each row.
            codes: Codebook 0 of the prompt, whole groups; t may be 0.
            code_lengths: Frames in each row.
            num_new_groups: How many groups a new cache must have room for.
            cache: An old one, to be used again.

        Returns:
            Scores of the first new group, and the cache for `decode_one_group`.
        """
        x, starts = self.embed(text, text_lengths, fold(codes, self.group_size), code_lengths // self.group_size)
        cache = cache or KVCache(self.shape, len(text), x.shape[1] + num_new_groups, x.device, x.dtype)
        return self.logits(self.transformer.prefill(x, starts[-1], cache)), cache

    def decode_one_group(
        self,
        group: Int[Tensor, "b {self.group_size}"],
        position: Int[Tensor, "b"],
        cache: KVCache,
        span: int | None = None,
    ) -> Float[Tensor, "b {self.group_size} v"]:
        """Read one more group, which is each row's `position`-th, and score the one after it.

        `span` is that of `Transformer.decode`.
        """
        x = self.embed_groups(group) + self.group_positions.at(position)
        return self.logits(self.transformer.decode(x, cache, span))


def code_loss(logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"]) -> dict[str, Float[Tensor, ""]]:
    """Mean negative log-likelihood in nats, and top-1 and top-10 accuracy."""
    logits = logits.float()
    with torch.no_grad():
        rank = (logits > logits.gather(1, targets[:, None])).sum(1)
    return {
        "loss": F.cross_entropy(logits, targets),
        "top1": (rank < 1).float().mean(),
        "top10": (rank < 10).float().mean(),
    }
