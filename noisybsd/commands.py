"""Which modules are commands, found without importing them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path


def commands() -> dict[str, str]:
    """Every command and what the first line of its module says."""
    package, found = Path(__file__).parent, {}
    for path in [*package.glob("[a-z]*.py"), *package.glob("*/__main__.py")]:
        text = path.read_text("utf-8")
        if '\nif __name__ == "__main__":' in text:
            name = path.parent.name if path.stem == "__main__" else path.stem
            found[name] = (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]
    return dict(sorted(found.items()))


def check_command(module: str) -> None:
    """End the process if `python -m MODULE` would do nothing, in silence."""
    package, _, name = module.partition(".")
    if package == "noisybsd" and name not in ("", *commands()):
        print(f"error: {module} is no command; valid: {', '.join(commands())}", file=sys.stderr)
        raise SystemExit(2)
