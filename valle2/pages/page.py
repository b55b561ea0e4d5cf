"""What our pages share: the template's environment, addresses made of bytes, the retention funnel.

A page is one file that needs no server and loads nothing; `page.css` is its style, for light and for dark screens, and
`parts.html.j2` has the tables that more than one page shows.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from valle2.types import SPLITS

_SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """Fill a template in; text in the values is escaped, and a name that has no value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _SHARED]), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["hours"] = hours
    return environment.get_template(template.name).render(**values)


def hours(value: float) -> str:
    """Hours to read; a small corpus has few of them, so that little ones get more digits."""
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.4f}"


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that needs no server."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def funnel_rows(funnel: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the retention funnel: what went in, what was dropped and why, what was kept.

    Args:
        funnel: `artifacts/curate/funnel.json`, or the part of one source; None gives no rows.
    """
    if not funnel:
        return []
    parts = [("taken in", funnel["in"], False)]
    parts += [(f"− {reason.replace('_', ' ')}", part, True) for reason, part in sorted(funnel["dropped"].items())]
    parts += [(f"kept for {split}", funnel["kept"][split], False) for split in SPLITS if split in funnel["kept"]]
    whole = max(funnel["in"]["hours"], 1e-9)
    return [
        {"name": name, "count": part["count"], "hours": hours(part["hours"]), "lost": lost,
         "width": round(100 * part["hours"] / whole, 1)}
        for name, part, lost in parts
    ]  # fmt: skip
