"""Write what was measured into the headers of recipes.

    python benchmarks/headers.py RUNS TABLE [RECIPES]

RUNS is a folder of finished runs, TABLE the file whose numbers they are (named in the header), RECIPES the
folder of the recipes, by default this checkout's. Of every recipe that has runs in which nothing but
method and seed is another, the fields Measured and Cost are replaced; the rest of the file stays as it is,
and so do recipes whose runs had other settings.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from noisybsd.compare.runs import METRICS, Run, find_runs
from noisybsd.compare.sections import Row, compare
from noisybsd.config import load_config, read_record
from noisybsd.errors import UserError
from noisybsd.files import write_atomically
from noisybsd.runs.directory import differences

BY_NAME = {metric.key: metric for metric in METRICS}
# other pixels are named in the text; a path is not the recipe's name
UNSAID = ("recipe", "device", "data.verify")


def as_the_recipe_says(run: Run, file: Path) -> bool:
    """Whether the run's settings are the recipe's, but for method, seed and where things are."""
    recipe = load_config([f"recipe={file}", f"method={run.method}", f"seed={run.seed}"])
    lines = differences(read_record(run.path / "config.yaml"), recipe)
    return {line.split(":")[0] for line in lines} <= {*UNSAID}


def measured(rows: list[Row], own: str, table: str) -> dict[str, str]:
    """The fields of a recipe whose own method is `own`, from its rows: of that method and of `ce`."""
    shown = [row for method in (own, "ce") for row in rows if row.method == method] or rows[:1]
    said = []
    for row in shown:
        accuracy, ece = (row.summary(BY_NAME[name]) for name in ("accuracy_last", "ece"))
        assert accuracy is not None and ece is not None
        spread = "" if accuracy.std is None else f" ± {accuracy.std:.3f}"
        said.append(f"{row.method} accuracy {accuracy.mean:.3f}{spread}, ECE {ece.mean:.3f}")
    counts = "/".join(dict.fromkeys(str(len(row.runs)) for row in shown))
    results = [run.results for row in shown for run in row.runs]
    pixels = [r.get("data", {}).get("pixels_verified") for r in results]
    other = "NOT the official pixels; " if False in pixels else ""
    seconds = [run.results["seconds"] for run in shown[0].runs]
    hardware = ", ".join(sorted({r["hardware"] for r in results}))
    return {
        "Measured": f"{'; '.join(said)}; n = {counts}; {other}{table}",
        "Cost": f"{sum(seconds) / len(seconds):.0f} s a run of {shown[0].method}; {hardware}",
    }


def replaced(text: str, fields: dict[str, str]) -> str:
    """A recipe's text with those fields of its header replaced."""
    for name, value in fields.items():
        text, found = re.subn(
            rf"^(# {name}: +).*$", lambda line, new=value: line[1] + new, text, flags=re.MULTILINE
        )
        if not found:
            raise ValueError(f"the header has no field {name}")
    return text


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print(__doc__)
        return 2
    runs, table = arguments[:2]
    recipes = Path(arguments[2] if len(arguments) > 2 else Path(__file__).parent.parent / "recipes")
    try:
        sections = compare(find_runs([runs])[0], mix=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for section in sections:
        file = recipes / f"{section.recipe}.yaml"
        if section.rate is not None or not file.is_file():
            continue
        own = load_config([f"recipe={file}"]).method
        rows = [
            row
            for row in section.rows
            if not row.settings and all(as_the_recipe_says(run, file) for run in row.runs)
        ]
        if rows:
            text = replaced(file.read_text("utf-8"), measured(rows, own, table))
            write_atomically(file, lambda out, text=text: out.write(text.encode()))
            print(f"{file}: {', '.join(row.method for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
