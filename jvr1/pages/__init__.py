"""Pages that are one file without network: templates, which share a style, and what is drawn in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

_STYLE = Path(__file__).parent


def render_page(template: Path, **values: Any) -> str:
    """The page that a template file makes of `values`; texts among them are escaped. It may include the style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _STYLE]), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template.name).render(**values)
