"""What mkdocs calls while it builds the site: the changelog is the repository's own file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; of changelog.md that of CHANGELOG.md, with links as they are among the pages."""
    if page.file.src_uri != "changelog.md":
        return markdown
    text = (ROOT / "CHANGELOG.md").read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]*)\]\((?:CONTRIBUTING|README)\.md[^)]*\)", r"\1", text)
