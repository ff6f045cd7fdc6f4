"""What --help says, and that it waits for nothing."""

import subprocess
import sys

import pytest
import yaml

from noisybsd.commands import commands
from noisybsd.config import Config, build_config, load_config, read_recipe, recipe_names
from noisybsd.describe import describe, describe_keys, describe_recipes
from noisybsd.errors import UserError
from noisybsd.files import resource_dir
from noisybsd.keys import fields
from noisybsd.methods.registry import LOSSES
from noisybsd.runs.directory import flatten
from noisybsd.settings import Registry

SLOW = ("torch", "torchvision", "sklearn", "scipy", "pyarrow", "pandas", "matplotlib", "wandb")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_help_names_every_key_with_its_default_and_every_recipe() -> None:
    keys = describe_keys()
    flat = yaml.safe_load(yaml.safe_dump(build_config({"recipe": "x"}).model_dump(mode="json")))
    for section, value in flat.items():
        is_section = isinstance(value, dict) and section != "options"
        for name in [f"{section}.{name}" for name in value] if is_section else [section]:
            assert f"\n  {name}=" in f"\n{keys}"
    assert "contrastive.temperature=0.3\n" in keys and "[float > 0 ≤ 1000]" in keys
    assert all(name in describe_recipes() for name in recipe_names())


def test_help_imports_nothing_that_takes_seconds() -> None:
    """Of every command; in one process, where the first such import would show."""
    found = python(
        "-c",
        "import importlib, pkgutil, sys\n"
        "from noisybsd.commands import commands\n"
        "from pathlib import Path\n"
        "for name in commands():\n"
        "    package = Path(sys.modules['noisybsd'].__path__[0], name).is_dir()\n"
        "    module = importlib.import_module(f'noisybsd.{name}' + '.__main__' * package)\n"
        "    assert module.main(['--help']) == 0 and module.main([]) == 2\n"
        "from noisybsd.data.__main__ import main\n"
        "main(['apply-review', '--help'])\n"
        "from noisybsd.train import main\n"
        "main(['recipe=own', '--help'])\n"
        f"print([name for name in {SLOW} if name in sys.modules])",
    )
    assert found.stdout.splitlines()[-1:] == ["[]"], found.stderr


@pytest.mark.parametrize("name", ["own", "cifar10n_worst_fast"])
def test_help_on_a_recipe_says_every_setting_of_its_run(name: str) -> None:
    text = describe([f"recipe={name}", "--help"])
    lines = [line.strip() for line in text.splitlines() if "=" in line]
    said = dict(line.removesuffix(" sets:").split("=", 1) for line in lines)
    for key, value in flatten(load_config([f"recipe={name}"]).model_dump(mode="json")).items():
        assert key == "recipe" or yaml.safe_load(said[key]) == value, key
    content = resource_dir("recipes") / f"{name}.yaml"
    assert content.read_text("utf-8").splitlines()[0].lstrip("# ") in text
    sets, rest = text.split("\nmethod=bsd_plus sets:")
    assert all(f"\n  {key}=" in sets for key in flatten(read_recipe(name)) if key != "recipe")
    assert "\n  seed=0" in rest


def test_help_on_a_method_lists_its_options_with_types() -> None:
    text = describe(["method=bsd_plus"])
    assert "  options.align=true\n" in text and "c: pseudo-count" in text and "[float ≥ 0]" in text
    assert "takes no options" in describe(["method=ce"])
    both = describe(["recipe=digits_sym40", "method=elr"])
    assert "method=elr sets:" in both and "options of method elr" in both


@pytest.mark.parametrize("mistake", ["recipe=ovn", "method=elf", "recipe=./nowhere.yaml"])
def test_help_on_what_is_not_there(mistake: str) -> None:
    with pytest.raises(UserError, match=r"recipe=|recipe: got|method: got"):
        describe([mistake])


def test_the_choices_read_from_a_module_s_text_are_those_it_has() -> None:
    entries = [each for _, field in fields(Config) for each in field.metadata]
    paths = sorted({each.path for each in entries if isinstance(each, Registry)})
    assert len(paths) >= 8
    code = (
        "import importlib, sys\n"
        "from noisybsd.settings import Registry\n"
        f"registries = [Registry(path, 'more') for path in {paths}]\n"
        "read = [registry.keys() for registry in registries]\n"
        "assert 'torch' not in sys.modules\n"
        "for registry, keys in zip(registries, read):\n"
        "    importlib.import_module(registry.path.split(':')[0])\n"
        "    assert registry.keys() == keys and keys[0] == 'more' and len(keys) > 2, registry.path\n"
    )
    assert not python("-c", code).stderr


def test_a_name_that_a_module_adds_to_its_dict_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "another", LOSSES["gce"])
    Registry("noisybsd.methods.registry:LOSSES").check("another")
    with pytest.raises(ValueError, match="did you mean another"):
        Registry("noisybsd.methods.registry:LOSSES").check("anothre")


def test_every_command_is_listed() -> None:
    found = python("-m", "noisybsd")
    assert found.returncode == 0
    for name in commands():
        assert f"\n  {name} " in found.stdout and f"python -m noisybsd.{name}" in found.stdout
    assert {"train", "report", "data", "compare", "evaluate", "sweep"} <= set(commands())


@pytest.mark.parametrize(
    "module", ["noisybsd.config", "noisybsd.engine.predict", "noisybsd.nothing"]
)
def test_a_module_that_is_no_command_says_so(module: str) -> None:
    found = python("-m", module)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith(f"error: {module} is no command; valid: compare, data, ")
