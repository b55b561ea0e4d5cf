"""On what grounds a voice is used.

Every recording carries its speaker's consent from the source declaration through each cut to the shards, so that a
model's lineage ends at it.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Consent(BaseModel):
    """One speaker's consent, as the source declares it.

    Attributes:
        basis: Legal ground, such as `consent`, `public-domain`, `licence` or `synthetic`.
        record: Where the proof is: a document, a URL, an id in another system.
        granted_by: Who gave it.
        date: When, ISO 8601.
        scope: What it allows.
    """

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)

    basis: str
    record: str = ""
    granted_by: str = ""
    date: str = ""
    scope: tuple[str, ...] = ()

    @field_validator("scope", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def of(cls, declared: Mapping[str, Any] | None) -> "Consent | None":
        """The consent in a cut's `custom`, None where a source declares none."""
        if not declared or not declared.get("basis"):
            return None
        return cls.model_validate(dict(declared))

    @property
    def sentence(self) -> str:
        """One line, such as `consent by Jo Doe, 2026-01-01 (forms/12.pdf)`."""
        by = f" by {self.granted_by}" if self.granted_by else ""
        date = f", {self.date}" if self.date else ""
        record = f" ({self.record})" if self.record else ""
        return f"{self.basis}{by}{date}{record}" + (f" for {', '.join(self.scope)}" if self.scope else "")
