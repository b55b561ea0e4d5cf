"""The non-autoregressive model: text, prompt and coarser codebooks -> one finer codebook, all frames at once.

VALL-E 2, arXiv:2406.05370, sections 3.2 and 3.3.2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from valle2.model.ar import code_loss
from valle2.model.layers import PositionEmbedding, Transformer, TransformerShape, initialise, join, length_mask

CONDITION_SECONDS = (3.0, 30.0)
"""Bounds of the random length of the acoustic condition (3.3.2)."""


class NARModel(nn.Module):
    """P(codebook j | text, all codebooks of the condition, codebooks below j), for j in 1..7.

    Input: E_text || eos || E_code || eos || e_j with full attention. Every codebook has its own embedding, which is
    also its prediction head. Text and frames have positions; the separators and e_j have none (not in the paper).
    """

    def __init__(
        self, shape: TransformerShape, vocab_size: int, num_codebooks: int = 8, codebook_size: int = 1024
    ) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.num_codebooks = shape, vocab_size, num_codebooks
        dim = shape.dim
        self.text_embedding = nn.Embedding(vocab_size, dim)
        self.text_positions = PositionEmbedding(shape.max_text_tokens, dim, "text tokens")
        self.separators = nn.Parameter(torch.empty(2, dim))
        self.code_embeddings = nn.ModuleList(nn.Embedding(codebook_size, dim) for _ in range(num_codebooks))
        self.frame_positions = PositionEmbedding(shape.max_frames, dim, "frames")
        self.code_id_embedding = nn.Embedding(num_codebooks - 1, dim)
        self.transformer = Transformer(shape, causal=False)
        initialise(self, shape.num_layers)

    def loss(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b k t"],
        code_lengths: Int[Tensor, "b"],
        codebook: int,
        condition_lengths: Int[Tensor, "b"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean negative log-likelihood of one codebook's codes behind the condition.

        Args:
            text: BPE tokens, padded on the right with anything.
            text_lengths: Tokens in each row.
            codes: All codebooks, padded on the right with anything.
            code_lengths: Frames in each row.
            codebook: j in 1..7; the paper draws one per step.
            condition_lengths: T', see `draw_condition_lengths`; the loss is on frames t >= T' only.

        Returns:
            `loss` in nats per code, and the shares of codes that were `top1` and among the `top10`.
        """
        hidden = self.hidden(text, text_lengths, codes, code_lengths, codebook, condition_lengths)
        size = codes.shape[-1]
        target = length_mask(code_lengths, size) & ~length_mask(condition_lengths, size)
        return code_loss(self.logits(hidden[target], codebook), codes[:, codebook][target])

    def hidden(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b k t"],
        code_lengths: Int[Tensor, "b"],
        codebook: int,
        condition_lengths: Int[Tensor, "b"],
    ) -> Float[Tensor, "b t d"]:
        """Output states of the frames; codebooks from `codebook` on are read in the condition only."""
        ones = torch.ones_like(text_lengths)
        first, second = self.separators.expand(len(text), -1, -1).split(1, 1)
        code_id = self.code_id_embedding.weight[codebook - 1].expand(len(text), 1, -1)
        x, starts = join(
            [
                (self.text_positions(self.text_embedding(text)), text_lengths),
                (first, ones),
                (self.frame_positions(self.embed_codes(codes, codebook, condition_lengths)), code_lengths),
                (second, ones),
                (code_id, ones),
            ]
        )
        ragged = bool((starts[-1] != x.shape[1]).any())
        hidden = self.transformer(x, length_mask(starts[-1], x.shape[1]) if ragged else None)
        frames = torch.arange(codes.shape[-1], device=x.device) + starts[2][:, None]
        return hidden.gather(1, frames.clamp(max=x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[2]))

    def embed_codes(
        self, codes: Int[Tensor, "b k t"], codebook: int, condition_lengths: Int[Tensor, "b"]
    ) -> Float[Tensor, "b t d"]:
        """E_code: the sum of all codebooks in the condition, and of those below `codebook` behind it (3.3.2)."""
        total = sum(self.code_embeddings[k](codes[:, k]) for k in range(codebook))
        # What lies behind the longest condition needs no finer codebook.
        longest = int(condition_lengths.max())
        inside = length_mask(condition_lengths, longest)[..., None]
        finer = sum(self.code_embeddings[k](codes[:, k, :longest]) for k in range(codebook, self.num_codebooks))
        return total + nn.functional.pad(finer * inside, (0, 0, 0, codes.shape[-1] - longest))

    def logits(self, hidden: Float[Tensor, "*b d"], codebook: int) -> Float[Tensor, "*b v"]:
        """Scores of one codebook's codes; the head is that codebook's embedding, tied (3.2)."""
        return hidden @ self.code_embeddings.get_parameter(f"{codebook}.weight").T

    @torch.no_grad()
    def generate(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b k t"],
        code_lengths: Int[Tensor, "b"],
        condition_lengths: Int[Tensor, "b"],
    ) -> Int[Tensor, "b k t"]:
        """Fill codebooks 1..7 behind the condition in seven greedy passes (3.3.2).

        Args:
            text: BPE tokens of prompt and target.
            text_lengths: Tokens in each row.
            codes: All codebooks of the prompt, codebook 0 of the target; the rest is ignored.
            code_lengths: Frames in each row, prompt included.
            condition_lengths: Frames of each row's prompt.
        """
        codes = codes.clone()
        keep = length_mask(condition_lengths, codes.shape[-1])
        for codebook in range(1, self.num_codebooks):
            hidden = self.hidden(text, text_lengths, codes, code_lengths, codebook, condition_lengths)
            best = self.logits(hidden, codebook).argmax(-1)
            codes[:, codebook] = torch.where(keep, codes[:, codebook], best)
        return codes


def draw_condition_lengths(
    code_lengths: Int[Tensor, "b"], frame_rate: float, generator: torch.Generator | None = None
) -> Int[Tensor, "b"]:
    """T' = min(len / 2, U(3 s, 30 s)), in frames.

    The paper's wording ("the maximum of half of the current utterance with a random value from 3 s to 30 s", 3.3.2) is
    ambiguous; this is the reading that always leaves a target.
    """
    low, high = (round(seconds * frame_rate) for seconds in CONDITION_SECONDS)
    drawn = torch.randint(low, high + 1, code_lengths.shape, generator=generator).to(code_lengths.device)
    return torch.minimum(code_lengths // 2, drawn)
