"""Importing this makes the model importable without jaxtyping; shapes in signatures then mean nothing."""

import importlib.util
import sys
import types
from typing import Any


class _Shape:
    """Takes any subscript, as `Float[Tensor, "b t"]` does."""

    def __class_getitem__(cls, item: Any) -> type:
        return cls


if importlib.util.find_spec("jaxtyping") is None:
    stand_in = types.ModuleType("jaxtyping")
    stand_in.Bool = stand_in.Float = stand_in.Int = _Shape  # type: ignore[attr-defined]
    sys.modules["jaxtyping"] = stand_in
