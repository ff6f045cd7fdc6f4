import re
from pathlib import Path

import pytest
from helpers import ROOT

from noisybsd.config import (
    load_config,
    read_record,
    recipe_names,
    save_config,
)
from noisybsd.errors import UserError
from noisybsd.methods.presets import METHODS
from noisybsd.runs.directory import differences
from noisybsd.train import main


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(arguments)
    return str(caught.value).splitlines()


# every recipe with one method, and every method with one recipe of a kind
SWAPS = [
    *((name, "ce") for name in recipe_names()),
    *((name, method) for name in ("digits_sym40", "cifar10n_worst_fast") for method in METHODS),
]


@pytest.mark.parametrize(("name", "method"), SWAPS)
def test_a_recipe_keeps_its_data_and_schedule_when_the_method_is_another(
    name: str, method: str
) -> None:
    config = load_config([f"recipe={name}", f"method={method}"])
    plain = load_config([f"recipe={name}"])
    same = ("data", "noise", "network", "optimizer", "epochs", "batch_size")
    assert all(getattr(config, part) == getattr(plain, part) for part in same)
    preset = METHODS[config.method]
    assert config.contrastive.name == preset["contrastive"]["name"]
    assert config.targets == preset["targets"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_header_that_says_how_to_run_it(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text("utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ") and len(header) >= 3
    assert any(f"recipe={name}" in line for line in header)
    root = ROOT
    for path in re.findall(r"\b(?:docs|results|noisybsd)/\S+\.\w+", "\n".join(header)):
        assert (root / path).is_file(), path


def test_later_layers_win() -> None:
    config = load_config(["recipe=digits_sym40", "optimizer.lr=1e-3", "contrastive.name=simclr"])
    assert config.optimizer.lr == 1e-3
    assert config.contrastive.name == "simclr"  # over the preset's supcon
    assert config.neighbours.k == 10  # the recipe's, untouched; the default is 20


def test_a_method_on_the_command_line_replaces_the_recipes_method_whole(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "method: bsd_simclr\ncontrastive: {name: supcon, weight: 3}\ndata: {name: digits}\n"
    )
    config = load_config([f"recipe={mine}", "method=ce"])
    assert (config.contrastive.name, config.targets) == ("none", "labels")
    assert config.augment.views == ("weak",)
    assert config.contrastive.weight == 3


def test_a_saved_configuration_reruns_the_same(tmp_path: Path) -> None:
    config = load_config(["recipe=digits_sym40", "method=bsd", "contrastive.name=none", "seed=3"])
    save_config(config, tmp_path / "config.yaml", "a note\nof two lines")
    assert load_config([f"recipe={tmp_path / 'config.yaml'}"]) == config


def test_who_uses_a_key_that_is_gone_hears_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: ce\nrun: {checkpoint_every: 3}\n")
    for said in ([f"recipe={tmp_path / 'mine.yaml'}"], ["recipe=own", "run.checkpoint_every=3"]):
        (line,) = mistakes(*said)
        assert "run.checkpoint_every: unknown key (got 3); it counted epochs" in line
        assert "use run.checkpoint_seconds" in line


def test_a_saved_configuration_forgets_the_run_directory(tmp_path: Path) -> None:
    config = load_config(["recipe=digits_sym40", "run.dir=here", "run.resume=none"])
    save_config(config, tmp_path / "config.yaml", "")
    again = load_config([f"recipe={tmp_path / 'config.yaml'}"])
    assert again.run.dir is None and again.run.resume == "auto"


def test_a_misspelt_recipe_gets_the_nearest_one() -> None:
    (line,) = mistakes("recipe=cifar10n_wurst")
    assert "did you mean cifar10n_worst?" in line and "digits_sym40" in line


def test_a_misspelt_section_gets_the_nearest_key() -> None:
    lines = mistakes("recipe=digits_sym40", "contrastve.weight=1", "contrastve.temprature=0.2")
    assert lines == [
        "contrastve.weight: unknown key (got 1); did you mean contrastive.weight?",
        "contrastve.temprature: unknown key (got 0.2); did you mean contrastive.temperature?",
    ]


def test_a_section_is_no_key() -> None:
    (line,) = mistakes("recipe=digits_sym40", "noise=symmetric")
    assert line.startswith("noise: is a section, got 'symmetric'; its keys: noise.name, noise.rate")


def test_an_argument_that_is_no_yaml_is_named() -> None:
    first, second = mistakes("recipe=digits_sym40", "noise.rate=[1", "epochs=3", "seed={")
    assert first.startswith("argument 'noise.rate=[1': not readable as YAML: ")
    assert second.startswith("argument 'seed={': ")


def test_all_mistakes_come_at_once() -> None:
    lines = mistakes(
        "recipe=digits_sym40",
        "epochs=0",
        "optimizer.lr=fast",
        "options.discont=0.9",
        "network.name=resnet19",
        "noise.rate=1.5",
        "device=tpu",
    )
    assert len(lines) == 6
    text = "\n".join(lines)
    assert "epochs" in text and "got 0" in text
    assert "optimizer.lr" in text and "'fast'" in text
    assert "did you mean options.discount?" in text
    assert "network.name: got 'resnet19', did you mean resnet18?" in text
    assert "noise.rate" in text and "1.5" in text
    assert "'tpu'" in text and "cpu" in text


def test_a_missing_recipe_lists_the_recipes() -> None:
    (line,) = mistakes("epochs=3")
    assert "recipe=NAME" in line and "digits_sym40" in line


@pytest.mark.parametrize("argument", ["epochs", "--epochs=3", "-x", "=3"])
def test_arguments_that_are_not_settings(argument: str) -> None:
    assert repr(argument) in mistakes("recipe=digits_sym40", argument)[0]


def test_mistakes_in_a_recipe_file_are_told_apart_from_those_of_the_command_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.yaml").write_text("methd: ce\ndata: {name: digits}\n")
    first, second = mistakes(f"recipe={tmp_path / 'mine.yaml'}", "epohcs=3")
    assert first.startswith("methd: unknown key")
    assert first.endswith(f"(in the recipe {tmp_path / 'mine.yaml'})")
    assert second.startswith("epohcs: unknown key") and "in the recipe" not in second


def test_all_conflicts_are_told_at_once() -> None:
    settings = ("augment.views=[weak]", "noise.name=none", "neighbours.weight=1")
    found = mistakes("recipe=digits_sym40", *settings, "options.top_k=3")
    keys = ["contrastive.name=supcon", "neighbours.weight=1.0", "noise.rate=0.4"]
    assert [line.split()[0].rstrip(":") for line in found] == keys


def test_a_recipe_that_is_called_config_is_no_record(tmp_path: Path) -> None:
    text = "data: {name: digits}\noptions: {prior_strength: 3}\n"
    for name in ("mine.yaml", "config.yaml"):
        (tmp_path / name).write_text(text)
        options = load_config([f"recipe={tmp_path / name}"]).options
        assert options["prior_strength"] == 3 and options["align"] is True


def test_ce_ema_needs_an_average() -> None:
    (line,) = mistakes("recipe=digits_sym40", "method=ce_ema", "ema.decay=0")
    assert "method=ce_ema" in line and "ema.decay=0" in line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["data.folds=5", "data.test_fraction=0.3"],
            "data.folds=5 says what is held out, and not data.test_fraction=0.3: leave one of them out",
        ),
        (
            ["method=ce", "augment.flip=alternating", "augment.views=[strong]"],
            "augment.flip=alternating mirrors the weak view, and augment.views=[strong] has none: use "
            "augment.flip=random",
        ),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(settings: list[str], says: str) -> None:
    assert mistakes("recipe=digits_sym40", *settings) == [says]


def test_a_list_without_brackets_is_answered_by_how_lists_are_written() -> None:
    (line,) = mistakes("recipe=digits_sym40", "augment.views=weak,strong")
    assert (
        line == "augment.views: Input should be a list, got 'weak,strong' (valid: [weak|strong,…])"
    )


@pytest.mark.parametrize(
    "method", ["ce", "label_smoothing", "gce", "sce", "ctrr", "ssr", "ssr_plus"]
)
def test_elrs_memory_needs_a_loss_that_sees_labels(method: str) -> None:
    (line,) = mistakes(
        "recipe=digits_sym40", f"method={method}", "targets=elr", "neighbours.weight=0"
    )
    loss = METHODS[method]["loss"]
    assert line.startswith(f"targets=elr is a memory of predictions, and loss={loss} learns")
    assert load_config(["recipe=digits_sym40", "targets=elr", "loss=elr"]).targets == "elr"


@pytest.mark.parametrize("loss", ["label_smoothing", "sce", "elr", "temporal_ensemble"])
def test_targets_with_weights_need_a_loss_that_takes_them(loss: str) -> None:
    (line,) = mistakes("recipe=digits_sym40", "method=ssr", "augment.mixup=0", f"loss={loss}")
    assert line == (
        f"targets=ssr gives samples weights, some of them 0, and loss={loss} takes none: use a loss of "
        "cross_entropy, gce, ctrr, ssr, ssr_plus"
    )


@pytest.mark.parametrize("method", ["sop", "sop_plus", "ill", "tcl"])
def test_a_loss_that_leaves_targets_alone_goes_with_the_given_labels(method: str) -> None:
    (line,) = mistakes("recipe=digits_sym40", f"method={method}", "targets=posterior")
    loss = METHODS[method]["loss"]
    assert line == (
        f"loss={loss} learns the given labels, and nothing of targets=posterior: use targets=labels"
    )


def test_a_contrastive_term_needs_two_views() -> None:
    (line,) = mistakes("recipe=digits_sym40", "augment.views=[weak]")
    assert "augment.views" in line and "contrastive.name=supcon" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1", "not readable"),
        ("- 1\n- 2\n", "mapping"),
        ("", "holds nothing"),
        ("# a comment alone\n", "holds nothing"),
        ("null\n", "holds nothing"),
        ("{}", "holds nothing"),
        ("\x00", "not readable"),
    ],
)
def test_damaged_recipe_files_are_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    text = "\n".join(mistakes(f"recipe={path}"))
    assert str(path) in text and says in text


def test_a_path_to_nowhere() -> None:
    assert "no such file" in mistakes("recipe=./nowhere.yaml")[0]


def test_commands_answer_mistakes_on_stderr_with_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipe=digits_sym4", "postrior.discount=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and "digits_sym40" in captured.err


def test_all_errors_at_once_even_with_a_misspelt_recipe(capsys: pytest.CaptureFixture) -> None:
    main(["recipe=typo", "postrior.discount=1"])
    text = capsys.readouterr().err
    assert "recipe" in text and "postrior" in text


def test_an_option_the_method_does_not_take() -> None:
    (line,) = mistakes("recipe=digits_sym40", "method=ce", "options.q=0.5")
    assert "options.q" in line and "method ce takes no options" in line


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("discount=true", "options.discount: got True (valid: float > 0 ≤ 1)"),
        ("discount=1.5", "options.discount: got 1.5 (valid: float > 0 ≤ 1)"),
        ("discount=high", "options.discount: got 'high' (valid: float > 0 ≤ 1)"),
        ("discount=.inf", "options.discount: got '.inf' (valid: float > 0 ≤ 1)"),
        ("discount=null", "options.discount: got None (valid: float > 0 ≤ 1)"),
        ("align=1", "options.align: got 1 (valid: bool)"),
        ("top_k=1", "options.top_k: got 1 (valid: int or null ≥ 2)"),
        ("top_k=3.5", "options.top_k: got 3.5 (valid: int or null ≥ 2)"),
    ],
)
def test_an_option_of_another_type(option: str, answer: str) -> None:
    assert mistakes("recipe=digits_sym40", f"options.{option}") == [answer]


def test_mistakes_in_options_come_at_once_and_with_those_of_other_keys() -> None:
    settings = ("options.discont=0.9", "options.align=1", "epochs=0")
    lines = mistakes("recipe=digits_sym40", *settings)
    assert len(lines) == 3 and lines[0].startswith("epochs: ")
    assert lines[1] == "options.align: got 1 (valid: bool)"
    assert lines[2].startswith(
        "options.discont: unknown option (got 0.9); did you mean options.discount? "
        "method bsd_plus takes options.prior_strength, options.discount, "
    )


def test_an_option_is_of_the_type_that_its_part_says() -> None:
    settings = ("options.prior_strength=3", "options.align=false", "options.top_k=4")
    given = load_config(["recipe=digits_sym40", *settings]).options
    assert given["prior_strength"] == 3 and type(given["prior_strength"]) is float
    assert given["align"] is False and given["sharpen"] is True
    assert given["top_k"] == 4 and type(given["top_k"]) is int


def test_options_are_read_from_a_record_as_they_were(tmp_path: Path) -> None:
    """So that a run goes on, and a comparison shows what differs."""
    for method in ("bsd", "bsd_plus", "sop_plus"):
        config = load_config(["recipe=digits_sym40", f"method={method}"])
        save_config(config, tmp_path / "config.yaml", "")
        assert list(differences(read_record(tmp_path / "config.yaml"), config)) == []


def test_another_part_does_not_inherit_the_options_of_the_one_before() -> None:
    digits = "recipe=digits_sym40"
    assert load_config([digits, "targets=labels"]).options == {}
    # the loss is still elr's, and keeps its own
    assert load_config([digits, "method=elr", "targets=labels"]).options == {"weight": 3.0}
    (line,) = mistakes(digits, "targets=labels", "options.discount=0.9")
    assert "options.discount" in line and "takes no options" in line


def test_a_record_whose_methods_meant_others_is_refused(tmp_path: Path) -> None:
    config = load_config(["recipe=digits_sym40", "method=bsd_supcon"])
    path = tmp_path / "config.yaml"
    save_config(config, path, "")
    path.write_text(path.read_text() + "posterior: {prior_strength: 8.0}\n")
    (line,) = mistakes(f"recipe={path}")
    assert line.startswith(f"{path}: made by a development version of noisybsd")
    assert "bsd_supcon of then is bsd_plus now" in line and "git_commit" in line


# --- text, numbers and what is neither ------------------------------------------------------------------

AS_TYPED = ("images #2", "2024", "2024_01", "on", "12:30", "1e3", "a, b", "{x", "${oc.env:HOME}")


@pytest.mark.parametrize("text", AS_TYPED)
def test_text_settings_take_text_as_it_is_typed(text: str) -> None:
    keys = ("data.root", "data.manifest", "run.dir", "tracking.project", "noise.file")
    config = load_config(["recipe=digits_sym40", *(f"{key}={text}" for key in keys)])
    found = (config.data.root, config.data.manifest, config.run.dir, config.tracking.project)
    assert found == (text,) * 4 and config.noise.file == text


@pytest.mark.parametrize("text", [t for t in AS_TYPED if "{" not in t and "#" not in t])
def test_text_in_a_recipe_is_taken_as_it_is_typed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{root: '{text}'}}\ntracking:\n  project: {text}\n  tags: [{text}]\n")
    config = load_config([f"recipe={path}"])
    assert (config.data.root, config.tracking.project) == (text, text)
    assert config.tracking.tags == tuple(each.strip() for each in text.split(","))


def test_null_is_none_where_a_setting_may_have_none() -> None:
    config = load_config(["recipe=digits_sym40", "data.manifest=null", "data.limit=null"])
    assert config.data.manifest is None and config.data.limit is None
    assert load_config(["recipe=digits_sym40", "data.root=null"]).data.root == "null"


def test_home_is_found_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = ("data.root", "data.labels", "data.manifest", "noise.file", "run.dir", "run.resume")
    config = load_config(["recipe=digits_sym40", *(f"{key}=~/x" for key in keys)])
    data, run = config.data, config.run
    assert {data.root, data.labels, data.manifest, config.noise.file, run.dir, run.resume} == {
        "/home/me/x"
    }


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("epochs=true", "epochs: got true; valid: a number"),
        ("optimizer.lr=false", "optimizer.lr: got false; valid: a number"),
        ("epochs=???", "epochs: "),
        ("epochs=${oc.env:HOME}", "epochs: "),
        ("epochs=!!int 3", "argument 'epochs=!!int 3': not readable as YAML: line 1: a tag"),
        ("epochs=&a 3", "argument 'epochs=&a 3': not readable as YAML: line 1: an anchor"),
        ("epochs=" + "9" * 5000, "epochs: Unable to parse"),
        ("epochs=" + "[" * 3000, "argument 'epochs=[[["),
        ("." * 3000 + "=1", "argument '...."),
        ("[=1", "[: unknown key (got 1)"),
        ("data=[1]", "data: is a section, got [1]; its keys: data.name"),
        ("optimizer=[1]", "optimizer: is a section, got [1]"),
        ("data.root.x=1", "data.root: Input should be a valid string, got {'x': 1}"),
        ("data.root=", "data.root: got nothing"),
        ("run.dir=", "run.dir: got nothing"),
        ("epochs=", "epochs: got nothing"),
        ("options=", "options: got nothing"),
        ("data.root=~nobody-of-this-name/x", "data.root: got '~nobody-of-this-name/x'"),
        ("data.root=caf\udce9", r"argument 'data.root=caf\udce9': is no text in UTF-8"),
        ("\udce9=1", r"argument '\udce9=1': is no text in UTF-8"),
        ("network.width=100000", "network.width: Input should be less than or equal to 4096"),
        ("network.embedding_dim=1e9", "network.embedding_dim: "),
        ("optimizer.lr=1e308", "optimizer.lr: "),
        ("optimizer.lr=1e999", "optimizer.lr: "),
        ("contrastive.weight=1e300", "contrastive.weight: "),
        ("data.size=1000000", "data.size: "),
        ("data.workers=1000000", "data.workers: "),
    ],
)
def test_values_that_cannot_be(argument: str, says: str) -> None:
    (line,) = mistakes("recipe=digits_sym40", argument)
    assert line.startswith(says) and len(line) < 700


# --- a recipe is data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("recipe: /elsewhere\nepochs: 3", "recipe"),
        ("recipe: ../../elsewhere\nepochs: 3", "recipe"),
        ("recipe: another\nepochs: 3", "recipe"),
        ("run: {dir: elsewhere}", "run.dir"),
        ("run: {resume: elsewhere}", "run.resume"),
    ],
)
def test_a_recipe_does_not_move_the_run_directory(content: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    (line,) = mistakes(f"recipe={path}")
    assert line == f"{path}: {key}: a recipe cannot say this; give {key}=… with the command"


@pytest.mark.parametrize("name", ["/elsewhere", "../x", "..", "", "a/b"])
def test_nor_does_a_record_that_someone_edited(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(load_config(["recipe=digits_sym40"]), path, "")
    path.write_text(path.read_text().replace("recipe: digits_sym40", f"recipe: '{name}'"))
    (line,) = mistakes(f"recipe={path}")
    assert line.startswith("recipe: got ")


def test_nothing_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: ${oc.env:SECRET}\ntracking: {project: '${oc.env:SECRET}'}\n")
    assert not any("hunter2" in line for line in mistakes(f"recipe={path}"))
    config = load_config([f"recipe={path}", "epochs=3"])
    assert config.tracking.project == "${oc.env:SECRET}"


def test_a_file_that_is_no_recipe_is_not_repeated(tmp_path: Path) -> None:
    for content in ("password: hunter2\n", "root:x:0:0:hunter2\n", "- hunter2\n", "hunter2: ["):
        path = tmp_path / "secrets.yaml"
        path.write_text(content)
        (line,) = mistakes(f"recipe={path}")
        assert line.startswith(f"{path}: ") and "hunter2" not in line


def test_a_record_with_values_of_wrong_types_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(load_config(["recipe=digits_sym40"]), path, "")
    whole = path.read_text()
    assert read_record(path)["epochs"] == 60
    for before, after, key in (
        ("epochs: 60", "epochs: many", "epochs"),
        ("epochs: 60", "epochs: [60]", "epochs"),
        ("  rate: 0.4", "  rate: {a: 1}", "noise.rate"),
    ):
        path.write_text(whole.replace(before, after))
        with pytest.raises(UserError, match=rf"^{path}: {key}: "):
            read_record(path)
    path.write_text(whole + "novelty: {x: 1}\n")  # of a later version, perhaps
    assert read_record(path)["novelty"] == {"x": 1}
