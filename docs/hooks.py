"""What `make docs` adds to the pages: the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The recipes in place of their mark, which one page has."""
    if "<!-- recipes -->" not in markdown:
        return markdown
    texts = {path.stem: path.read_text("utf-8").strip() for path in sorted(RECIPES.glob("*.yaml"))}
    pages = [f"## {name}\n\n```yaml\n{text}\n```" for name, text in texts.items()]
    return markdown.replace("<!-- recipes -->", "\n\n".join(pages))
