"""Who may import whom: a file its own folder and the levels below, and no files in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from helpers import ROOT

COMMANDS = (
    *(
        "train",
        "training",
        "library",
        "describe",
        "evaluate",
        "predict",
        "export",
        "sweep",
        "launch",
    ),
    "__main__",
)
LEVELS = (
    ("commands",),
    ("errors",),
    ("files", "distributed", "processes"),
    ("settings", "values"),
    ("methods", "models"),
    ("keys",),
    ("config",),
    ("data", "runs"),
    ("engine",),
    ("report", "compare"),
    COMMANDS,
    ("__init__",),
)


def module_name(file: Path) -> str:
    """As others import it: a folder's __init__.py by the folder's name; the package's own is apart."""
    name = ".".join(file.relative_to(ROOT / "noisybsd").with_suffix("").parts)
    return name.removesuffix(".__init__")


FILES = {
    module_name(file): ast.parse(file.read_bytes()) for file in (ROOT / "noisybsd").rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The package's other modules that a module imports, at its top or later."""
    names = set()
    for node in ast.walk(FILES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.removeprefix("noisybsd.") for name in names} & FILES.keys() - {module}


def place(module: str) -> tuple[int, str]:
    """Level and folder; all commands count as one folder."""
    first, *_, last = module.split(".") * 2
    name = "__main__" if last == "__main__" else first
    level = next(number for number, names in enumerate(LEVELS) if name in names)
    return level, "" if name in COMMANDS else first


def test_a_module_imports_its_own_folder_and_lower_levels() -> None:
    for module in FILES:
        for other in imports(module):
            lower = place(other)[0] < place(module)[0]
            assert lower or place(other) == place(module), f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: imports(module) for module in FILES}).prepare()


def test_a_process_that_decodes_images_does_not_import_kornia() -> None:
    """It takes each of them seconds to import."""
    program = "import sys, noisybsd.data.loader; sys.exit('kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
