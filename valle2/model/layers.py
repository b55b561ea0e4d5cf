"""The Transformer that AR and NAR share: pre-norm blocks, learned positions, static key-value cache.

It knows nothing of codes or codebooks; `valle2.model.ar` and `valle2.model.nar` put them in. The paper (VALL-E 2,
arXiv:2406.05370, section 3.2) states neither depth nor width, nor where dropout sits. Ours: LayerNorm before each
sub-layer and at the end, ReLU, dropout on the embeddings and on what each sub-layer adds, none on attention weights,
so that the fused attention kernels stay usable.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from valle2.errors import ShapeError

INIT_STD = 0.02
"""Standard deviation of weights at the start; not in the paper, GPT-2's."""


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of one Transformer; the meaning of each is in `valle2.config.model`."""

    num_layers: int
    dim: int
    num_heads: int
    ffn_dim: int
    dropout: float
    max_text_tokens: int
    max_frames: int


class KVCache:
    """Keys and values of what was read so far, in buffers that are allocated once.

    Rows may have different lengths; what lies behind a row's length is never attended to and is overwritten as the
    row grows.

    Attributes:
        lengths: Tokens held in each row.
        num_keys: Tokens that a row has room for.
        num_read: Tokens that are attended to, from a row's first; at least those of the longest row.
    """

    def __init__(
        self,
        shape: TransformerShape,
        batch_size: int,
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        buffer = (shape.num_layers, batch_size, shape.num_heads, size, shape.dim // shape.num_heads)
        self.keys = torch.zeros(buffer, device=device, dtype=dtype)
        self.values = torch.zeros(buffer, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.rows = torch.arange(batch_size, device=device)
        self.num_keys = size
        self.num_read = 0

    def append(
        self, layer: int, key: Float[Tensor, "b h n e"], value: Float[Tensor, "b h n e"]
    ) -> tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m e"]]:
        """Store a layer's new keys and values behind each row's length.

        The lengths move once for all layers, by `Transformer.decode` or `Transformer.prefill`.

        Returns:
            The first `num_read` keys and values.
        """
        num_new = key.shape[2]
        if num_new == 1:
            self.keys[layer, self.rows, :, self.lengths] = key[:, :, 0]
            self.values[layer, self.rows, :, self.lengths] = value[:, :, 0]
        else:
            self.keys[layer, :, :, :num_new] = key
            self.values[layer, :, :, :num_new] = value
        return self.keys[layer, :, :, : self.num_read], self.values[layer, :, :, : self.num_read]


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        causal: bool,
        mask: Bool[Tensor, "b 1 1 m"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b n d"]:
        """Attend; `mask` is True where a key may be seen, `cache` prepends what was read before."""
        batch, num_tokens, dim = x.shape
        query, key, value = (
            self.qkv(x).view(batch, num_tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        )
        if cache is not None:
            key, value = cache.append(layer, key, value)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(batch, num_tokens, dim))


@torch.library.custom_op(  # type: ignore[call-overload,misc]
    "valle2::random_words", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def random_words(count: int) -> Tensor:
    """Random integers of all 64 bits, an operator of its own so that torch.compile leaves the drawing to torch."""
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None)


@random_words.register_fake  # type: ignore[misc]
def _(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64)


class Dropout(nn.Module):
    """Zeroes a share of the entries while training, and scales up the others.

    On a CPU torch draws one random number after another on one thread, which took a tenth of a training step. Here each
    number of 64 bits decides four entries, so that the share is a multiple of 2^-16.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Drop, or leave as it is outside of training."""
        if not self.training or self.share == 0 or self.share == 1 or x.device.type != "cpu":
            return F.dropout(x, self.share, self.training)
        drawn = random_words((x.numel() + 3) // 4)
        dropped = round(self.share * 2**16)
        kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Block(nn.Module):
    """One pre-norm Transformer block."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.dim)
        self.attention = Attention(shape.dim, shape.num_heads)
        self.ffn_norm = nn.LayerNorm(shape.dim)
        self.ffn_in = nn.Linear(shape.dim, shape.ffn_dim)
        self.ffn_out = nn.Linear(shape.ffn_dim, shape.dim)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        causal: bool,
        mask: Bool[Tensor, "b 1 1 m"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "b n d"]:
        """Attention, then the feed-forward net, each added to its input."""
        attended = self.attention(self.attention_norm(x), causal=causal, mask=mask, cache=cache, layer=layer)
        x = x + self.dropout(attended)
        return x + self.dropout(self.ffn_out(F.relu(self.ffn_in(self.ffn_norm(x)), inplace=self.training)))


def attended_shares(
    block: Block, x: Float[Tensor, "b n d"], queries: Int[Tensor, "b g"], num_keys: int
) -> Float[Tensor, "b g m"]:
    """Logarithms of what the first head of a causal block gives to each of the first tokens.

    Args:
        block: Whose attention.
        x: What the block reads.
        queries: The tokens that attend, none of them among the first `num_keys`.
        num_keys: How many of the first tokens.
    """
    attention, size = block.attention, x.shape[2] // block.attention.num_heads
    # The rows of the joint projection that make the first head's queries and keys.
    rows = torch.cat([torch.arange(size), torch.arange(size) + x.shape[2]]).to(x.device)
    read = block.attention_norm(x)
    query, key = F.linear(read, attention.qkv.weight[rows], attention.qkv.bias[rows]).float().chunk(2, -1)
    query = query.gather(1, queries[..., None].expand(-1, -1, size))
    scores = query @ key.transpose(1, 2) / math.sqrt(size)
    unseen = torch.arange(x.shape[1], device=x.device) > queries[..., None]
    return scores.masked_fill(unseen, -torch.inf).log_softmax(-1)[..., :num_keys]


class Transformer(nn.Module):
    """A stack of blocks with a final norm, over embeddings that already carry their positions."""

    def __init__(self, shape: TransformerShape, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None = None,
        inputs: list[Float[Tensor, "b n d"]] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Read whole sequences at once.

        Args:
            x: Embeddings, padded on the right.
            mask: True on tokens, False on padding. A causal stack needs none: what is on the right is never seen.
            inputs: Where given, what each block reads is added to it.
        """
        x = self.dropout(x)
        keys = None if mask is None else mask[:, None, None]
        for block in self.blocks:
            if inputs is not None:
                inputs.append(x)
            x = block(x, causal=self.causal, mask=keys)
        return self.norm(x)

    def prefill(self, x: Float[Tensor, "b n d"], lengths: Int[Tensor, "b"], cache: KVCache) -> Float[Tensor, "b d"]:
        """Read the given sequences, padded on the right, into an empty cache.

        Returns:
            The output at each row's last token.
        """
        cache.num_read = x.shape[1]
        for layer, block in enumerate(self.blocks):
            x = block(x, causal=True, cache=cache, layer=layer)
        cache.lengths.copy_(lengths)
        return self.norm(x[cache.rows, lengths - 1])

    def decode(self, x: Float[Tensor, "b d"], cache: KVCache, span: int | None = None) -> Float[Tensor, "b d"]:
        """Read one more token in each row.

        Args:
            x: Its embedding.
            cache: What was read before.
            span: Keys to attend to, at least those of the longest row with the new one; by default just these.
        """
        x = x[:, None]
        cache.num_read = span or int(cache.lengths.max()) + 1
        mask = length_mask(cache.lengths + 1, cache.num_read)[:, None, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, causal=False, mask=mask, cache=cache, layer=layer)
        cache.lengths += 1
        return self.norm(x[:, 0])


class PositionEmbedding(nn.Module):
    """A learned vector for each position; one table for text and one for groups or frames (3.2).

    The table starts as sinusoids at the scale of the other embeddings, so that near positions are alike before anything
    is learned; how it starts is not in the paper.
    """

    def __init__(self, num_positions: int, dim: int, counts: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, dim))
        self.counts = counts

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Add the vectors of positions 0, 1, ... n-1.

        Raises:
            ShapeError: The table ends before the sequence does.
        """
        if x.shape[1] > len(self.weight):
            raise ShapeError(
                f"{x.shape[1]} {self.counts}, but the position table has {len(self.weight)}; use a shorter text or "
                "prompt, or train with larger max_text_tokens or max_frames"
            )
        return x + self.weight[: x.shape[1]]

    def at(self, positions: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """The vectors of single positions."""
        return self.weight[positions]


def join(
    parts: list[tuple[Float[Tensor, "b _ d"], Int[Tensor, "b"]]],
) -> tuple[Float[Tensor, "b n d"], list[Int[Tensor, "b"]]]:
    """Put padded sequences behind each other so that padding is on the right only.

    Args:
        parts: Padded embeddings and the true length of each row.

    Returns:
        The joined embeddings, zero behind each row's end; and where in each row each part starts, with each row's
        whole length as the last entry.
    """
    starts = [torch.zeros_like(parts[0][1])]
    for _, lengths in parts:
        starts.append(starts[-1] + lengths)
    place = torch.arange(int(starts[-1].max()), device=parts[0][0].device)[None]
    source = torch.zeros_like(place).expand(len(starts[0]), -1)
    offset = 0
    for (embeddings, _), start in zip(parts, starts[:-1], strict=True):
        source = torch.where(place >= start[:, None], place - start[:, None] + offset, source)
        offset += embeddings.shape[1]
    everything = torch.cat([embeddings for embeddings, _ in parts], 1)
    inside = place < starts[-1][:, None]
    source = torch.where(inside, source, 0)
    joined = everything.gather(1, source[..., None].expand(-1, -1, everything.shape[-1]))
    return joined * inside[..., None], starts


def length_mask(lengths: Int[Tensor, "b"], size: int) -> Bool[Tensor, "b n"]:
    """True on the first `lengths` of `size` places."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def sinusoids(num_positions: int, dim: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange((dim + 1) // 2) * (-math.log(10_000.0) / ((dim + 1) // 2)))
    angles = torch.arange(num_positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :dim]


def initialise(model: nn.Module, num_layers: int) -> None:
    """Normal weights, zero biases; what is added to the residual stream is scaled down by depth (GPT-2)."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue
        if name.endswith("positions.weight"):
            parameter.data.copy_(INIT_STD * math.sqrt(2) * sinusoids(*parameter.shape))
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            residual = name.endswith(("attention.out.weight", "ffn_out.weight"))
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * num_layers) if residual else INIT_STD)
