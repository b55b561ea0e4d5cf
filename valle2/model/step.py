"""One turn of the AR loop: read the last group, draw the next one (VALL-E 2, arXiv:2406.05370, section 3.4).

All that a turn works on lies in buffers that are allocated once. On a CPU a turn is a plain call. On a GPU, where
starting a few hundred small kernels takes longer than they run, it is a CUDA graph; such a graph attends to a fixed
number of keys, so there is one for each multiple of `SPAN`. The loop around it is `valle2.decoding`'s.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from valle2.model.ar import ARModel
from valle2.model.layers import KVCache
from valle2.model.sampling import Sampling, sample_group

SPAN = 256
"""Keys by which the graphs of a GPU differ: fewer would be more graphs, more would be more keys read in vain."""


class ARStep:
    """The state of a batch that is being spoken.

    Attributes:
        group: Last group drawn, [b, g].
        ended: Rows that have EOS in that group, [b].
    """

    def __init__(self, ar: ARModel, batch_size: int, num_keys: int, sampling: Sampling) -> None:
        self.ar, self.sampling = ar, sampling
        device = ar.separators.device
        self.cache = KVCache(ar.shape, batch_size, num_keys, device, ar.separators.dtype)
        self.group = torch.zeros(batch_size, ar.group_size, dtype=torch.long, device=device)
        self.ended = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self._history = torch.zeros(batch_size, max(sampling.ras_window, 1), dtype=torch.long, device=device)
        self._position = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(batch_size, ar.group_size, 2, device=device)
        self._num_keys = 0
        self._graphs: dict[int, Callable[[], None]] = {}

    def start(
        self,
        text: Int[Tensor, "b s"],
        text_lengths: Int[Tensor, "b"],
        codes: Int[Tensor, "b t"],
        code_lengths: Int[Tensor, "b"],
        uniforms: Float[Tensor, "b g 2"],
    ) -> None:
        """Read text and prompt as `ARModel.prefill` does, and draw the first group.

        Args:
            text, text_lengths, codes, code_lengths: As for `ARModel.prefill`.
            uniforms: Numbers in [0, 1), as for `sample_group`.
        """
        logits, _ = self.ar.prefill(text, text_lengths, codes, code_lengths, cache=self.cache)
        self._num_keys = self.cache.num_read
        window = self._history.shape[1]
        last = code_lengths[:, None] + torch.arange(window, device=codes.device)
        self._history.copy_(F.pad(codes, (window, 0), value=-1).gather(1, last))
        self._position.copy_(code_lengths // self.ar.group_size)
        self._uniforms.copy_(uniforms)
        self._draw(logits)

    def turn(self, uniforms: Float[Tensor, "b g 2"]) -> None:
        """Read the last group and draw the next."""
        self._uniforms.copy_(uniforms)
        self._num_keys += 1
        if not uses_graphs(self.group.device):
            self._turn(self._num_keys)
            return
        span = min(-(-self._num_keys // SPAN) * SPAN, self.cache.num_keys)
        if span not in self._graphs:
            state = (self.group, self.ended, self._history, self._position, self.cache.lengths)
            self._graphs[span] = capture(lambda: self._turn(span), state)
        self._graphs[span]()

    def _turn(self, span: int) -> None:
        """Nothing in it waits for the device, so that it can be captured."""
        # Rows that have ended go on with anything, within the tables; nothing of it is kept.
        position = self._position.clamp(max=self.ar.shape.max_frames // self.ar.group_size - 1)
        self._position += 1
        self._draw(self.ar.decode_one_group(self.group.clamp(max=self.ar.eos - 1), position, self.cache, span))

    def _draw(self, logits: Float[Tensor, "b g v"]) -> None:
        group, history = sample_group(logits, self._history, self._uniforms, self.sampling, self.ar.eos)
        self.group.copy_(group)
        self._history.copy_(history)
        self.ended.copy_((group == self.ar.eos).any(1))


@contextmanager
def ar_step(ar: ARModel, batch_size: int, num_keys: int, sampling: Sampling) -> Iterator[ARStep]:
    """A step for a batch of up to `num_keys` tokens a row.

    On a GPU the model keeps the last one, with its graphs and its cache's memory, for the next batch of this size.
    """
    kept = uses_graphs(ar.separators.device)
    spare = ar.spare_steps.pop() if ar.spare_steps else None
    if spare and (spare.group.shape[0], spare.sampling) == (batch_size, sampling) and spare.cache.num_keys >= num_keys:
        step = spare
    else:
        step = ARStep(ar, batch_size, -(-num_keys // SPAN) * SPAN if kept else num_keys, sampling)
    try:
        yield step
    finally:
        ar.spare_steps = [step] if kept else []


def uses_graphs(device: torch.device) -> bool:
    """Whether turns on a device are CUDA graphs."""
    return device.type == "cuda"


def capture(work: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """A CUDA graph of what a function does on the GPU.

    Args:
        work: It reads and writes tensors that stay where they are, and does not wait for the device.
        state: Tensors that it changes, and whose present values the first replay is to find. Keys and values are not
            among them: what a trial run puts there, the first replay puts there again.

    Returns:
        What runs it once.
    """
    before = [tensor.clone() for tensor in state]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()  # libraries set themselves up in their first call, which cannot be captured
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay
