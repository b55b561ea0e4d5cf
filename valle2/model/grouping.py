"""Folding of code sequences into groups, one AR step each (VALL-E 2, arXiv:2406.05370, section 3.2)."""

from jaxtyping import Int
from torch import Tensor

from valle2.errors import ShapeError


def clip_start(codes: Int[Tensor, "*k t"], group_size: int) -> Int[Tensor, "*k u"]:
    """Make the number of frames a multiple of the group size.

    Frames go from the START, where an utterance is silent; padding the end would teach the model wrong codes before
    the end (3.2).
    """
    return codes[..., codes.shape[-1] % group_size :]


def fold(codes: Int[Tensor, "*b t"], group_size: int) -> Int[Tensor, "*b g s"]:
    """Fold consecutive frames into groups.

    Args:
        codes: RVQ indices, one column per frame.
        group_size: Frames per AR step, G in the paper; must divide t.

    Returns:
        The same indices with time split into (group, frame within group).

    Raises:
        ShapeError: t is not a multiple of group_size.
    """
    if codes.shape[-1] % group_size:
        raise ShapeError(f"{codes.shape[-1]} frames do not fold into groups of {group_size}; clip_start them first")
    return codes.unflatten(-1, (codes.shape[-1] // group_size, group_size))


def unfold(groups: Int[Tensor, "*b g s"]) -> Int[Tensor, "*b t"]:
    """The inverse of `fold`."""
    return groups.flatten(-2)
