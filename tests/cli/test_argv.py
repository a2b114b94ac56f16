"""The arguments: any path survives the grammar, sweeps are found again by their names."""

import os
import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vit.cli.argv import PATH_KEYS, prepare, safe_name, split
from vit.cli.front import is_sweep, sweep_folder
from vit.cli.overrides import Overrides
from vit.errors import ConfigError

GROUPS = ["data", "model", "trainer", "experiment"]
UNHURRIED = settings(deadline=None)
PATHS = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1).filter(
    lambda path: path != "null" and path[0] not in "'\"[~" and "${" not in path
)
PARSER = OverridesParser.create()


def parsed(argument):
    """What Hydra makes of one argument, after we prepared it: its key and its value."""
    override = PARSER.parse_override(*prepare([argument], GROUPS))
    assert not override.is_sweep_override()
    return override.key_or_group, override.value()


# Paths


@pytest.mark.parametrize("key", sorted(PATH_KEYS))
@pytest.mark.parametrize(
    "path",
    [
        "plain", "/a/b.c", "a=b", "a(1)", "(a)", "a b", " a ", "größe/写真", "a'b", "a''b", "it's",
        'a"b', "a\\b", "a\\", "a\\\\", "a\\'b", "a\\\\'", "a,b", "a:b", "a;b", "{a}", "a]", "$a",
        "a$", "%", "#a", "a # b", "@a", "!a", "&a", "*", "+a", "-a", "--a", "1", "1e3", "true",
        "nan", "NULL", "a~b", "?", "???x", "a[1]", "", "😀",
    ],
)  # fmt: skip
def test_a_path_arrives_as_it_was_typed(key, path):
    assert parsed(f"{key}={path}") == (key, path)


@settings(deadline=None, max_examples=500)
@given(path=PATHS)
@example("\\'")
@example("a\\\\\\'b\\")
def test_any_path_arrives_as_it_was_typed(path):
    assert parsed(f"data.root={path}") == ("data.root", path)


@UNHURRIED
@given(rest=PATHS)
def test_home_is_expanded(rest):
    assert parsed(f"data.root=~/{rest}")[1] == os.path.expanduser("~") + f"/{rest}"
    assert parsed("outputs=~")[1] == os.path.expanduser("~")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("resume=null", None),
        ("name='a b'", "a b"),
        ('data.root="a, b"', "a, b"),
        ("images=[a,b]", ["a", "b"]),
        ("images=['a b', c]", ["a b", "c"]),
        ("checkpoint=[a,b]", ["a", "b"]),
        ("+outputs=a b", "a b"),
        ("++outputs=a b", "a b"),
    ],
)
def test_null_quotes_lists_and_signs_stay(argument, value):
    (prepared,) = prepare([argument], GROUPS)
    assert parsed(argument)[1] == value
    if not argument.startswith("+") and "outputs" not in argument:
        assert prepared == f"++{argument}"


@pytest.mark.parametrize("path", ["'90s photos", '"a', "[1] flowers", "[photos]"])
def test_a_path_that_only_looks_like_a_quote_or_a_list(path):
    assert parsed(f"data.root={path}")[1] == path


@pytest.mark.parametrize("pattern", [r"[a-z]+[0-9]", r"patient_(\d+)", r"^([^_]+)_", r"it's (\w)$"])
def test_a_pattern_is_taken_as_it_is(pattern):
    assert parsed(f"data.group={pattern}")[1] == pattern


def test_a_folder_with_an_equals_sign_stays_with_its_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my=configs").mkdir()
    for flag in (["--config-dir", "./my=configs"], ["-cd=./my=configs"]):
        assert split(flag) == ({"--config-dir": "./my=configs"}, [])


@pytest.mark.parametrize("value", ["a=b", "(1)", "it's", "1e-3", "[1,2]", "{a:1}", "1,2"])
def test_other_values_are_hydras(value):
    assert prepare([f"optim.lr={value}"], GROUPS) == [f"++optim.lr={value}"]


# The other arguments


@pytest.mark.parametrize(
    ("given_", "added"),
    [
        (["trainer.steps=5"], ["epochs", "minutes"]),
        (["trainer.epochs=5"], ["steps", "minutes"]),
        (["trainer.minutes=5"], ["epochs", "steps"]),
        (["+trainer.epochs=5"], ["steps", "minutes"]),
        (["trainer.epochs=1,2"], ["steps", "minutes"]),
        (["trainer.epochs=5", "trainer.steps=5"], ["minutes"]),
        (["optim.lr=1"], []),
        ([], []),
        (["trainer.steps=null"], []),
    ],
)
def test_lengths_replace_each_other(given_, added):
    wanted = [f"++trainer.{length}=null" for length in added]
    assert prepare(given_, GROUPS)[len(given_) :] == wanted


def test_two_lengths_of_which_one_counts_the_other_are_refused():
    with pytest.raises(ConfigError, match=r"trainer\.steps and trainer\.minutes contradict"):
        prepare(["trainer.minutes=5", "trainer.steps=9"], GROUPS)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_an_option_of_a_group_is_picked_not_added(group, sign):
    assert prepare([f"{sign}{group}=small"], GROUPS) == [f"{group}=small"]


def test_an_option_of_ones_own_group_is_added():
    assert prepare(["+hardware=laptop"], [*GROUPS, "hardware"]) == ["+hardware=laptop"]


@pytest.mark.parametrize("line", ["experiment=null", "+sweep=null"])
def test_nothing_is_picked_of_a_group_that_has_no_default(line):
    assert prepare([line, "seed=1"], [*GROUPS, "sweep"]) == ["++seed=1"]


def test_a_folder_that_is_called_like_an_option_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "my photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert prepare(["model=small", "data=/a/b"], GROUPS) == ["model=small", "data=/a/b"]
    assert prepare(["data=my photos"], GROUPS) == ["data='my photos'"]
    assert Overrides(prepare(["data=../x/y"], GROUPS)).choices("data") == ["../x/y"]


@pytest.mark.parametrize(
    "argument", ["hydra.launcher.n_jobs=2", "hydra/launcher=basic", "model@other=small"]
)
def test_hydras_own_words_are_left_alone(argument):
    assert prepare([argument], GROUPS) == [argument]


def test_unknown_keys_reach_the_checks():
    assert prepare(["nonsense.key=1"], GROUPS) == ["++nonsense.key=1"]


@pytest.mark.parametrize("flag", ["--faster", "--faster=10", "-x", "-mm", "--Help"])
def test_an_option_that_does_not_exist_is_refused(flag):
    with pytest.raises(ConfigError, match=r"is no option.*key=value.*--help") as raised:
        split(["model=small", flag, "10"])
    assert str(raised.value).startswith(flag)


@pytest.mark.parametrize(
    ("given_", "flags"),
    [
        (["-m"], {"--multirun": ""}), (["--multirun"], {"--multirun": ""}),
        (["--cfg", "job"], {"--cfg": "job"}), (["--config-dir", "/"], {"--config-dir": "/"}),
        (["-cd=/"], {"--config-dir": "/"}), (["-i"], {"--info": ""}),
        (["-i", "plugins"], {"--info": "plugins"}),
    ],
)  # fmt: skip
def test_hydras_options_are_told_from_overrides(given_, flags):
    assert split(["seed=1", *given_, "model=small"]) == (flags, ["seed=1", "model=small"])


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["run"], ["checkpoint=run"]),
        (["run", "a.jpg", "top=1"], ["top=1", "checkpoint=run", "images=a.jpg"]),
        (["run", "a b", "it's"], ["checkpoint=run", "images=['a b','it\\'s']"]),
        (["a", "checkpoint=run"], ["checkpoint=run", "images=a"]),
        (["run", "images=a"], ["images=a", "checkpoint=run"]),
        (["./a=b", "~/x"], ["checkpoint=./a=b", "images=~/x"]),
    ],
)
def test_a_model_and_images_are_known_by_their_order(words, overrides):
    assert split(words, "predict") == ({}, overrides)


@pytest.mark.parametrize("words", [["--help", "model"], ["model", "-h"], ["seed=1", "-h", "model"]])
def test_help_of_a_group(words):
    assert split(words)[0] == {"--help": "model"}


def test_two_models_are_compared_unless_one_is_given(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert split([a, b, "photos"], "eval")[1] == [f"checkpoint=['{a}','{b}']", "images=photos"]
    assert split([a, "photos"], "eval")[1] == [f"checkpoint={a}", "images=photos"]
    assert split([a, b], "predict")[1] == [f"checkpoint={a}", f"images={b}"]
    given = split(["checkpoint=c.pt", a, b], "eval")[1]
    assert given == ["checkpoint=c.pt", f"images=['{a}','{b}']"]


def test_what_is_one_too_many_is_named():
    with pytest.raises(ConfigError, match=r"^b is one too many"):
        split(["checkpoint=run", "b", "images=a"], "explain")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "1e-3"], "optim.lr=0.001"), (["--lr=1e-3"], "optim.lr=0.001"),
        (["--lr", "model=small"], "optim.lr=<value>"), (["--lr", "-m"], "optim.lr=<value>"),
        (["-b", "64"], "trainer.batch_size=64"), (["--drop-path", "0.1"], "model.drop_path=0.1"),
        (["--compile", "true"], "trainer.compile=true"), (["--seed", "1"], "seed=1"),
    ],
)  # fmt: skip
def test_an_option_of_another_trainer_is_told_as_a_setting(words, said):
    with pytest.raises(ConfigError) as raised:
        split(words)
    assert str(raised.value).endswith(f" here: {said}")


def test_prepared_arguments_parse_in_one_piece():
    prepared = prepare(["seed=1", "data.root=a (b)='c'", "trainer.steps=5", "model=tiny"], GROUPS)
    keys = [override.key_or_group for override in PARSER.parse_overrides(prepared)]
    assert keys[:-2] == ["seed", "data.root", "trainer.steps", "model"]
    assert keys[-2:] == ["trainer.epochs", "trainer.minutes"]


def test_the_last_value_counts():
    lines = ["name=a", "++name='b c'", "names=d", "outputs='a=b'", "images=[a,'b c']"]
    overrides = Overrides(lines)
    assert overrides.text("name") == "b c"
    assert overrides.text("outputs") == "a=b"
    assert overrides.text("images") == "[a,'b c']"
    assert overrides.text("nam") is None
    assert overrides.keys == {"name", "names", "outputs", "images"}
    assert overrides.typed()["name"] == "'b c'"


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("model=small", ["small"]), ("model=tiny,'a/b',7", ["tiny", "a/b", "7"]),
        ("model=7", ["7"]), ("model=null", ["null"]), ("model=glob(s*)", ["small"]),
        ("model=null,a", ["null", "a"]),
        ("model=~/my models", ["~/my models"]), ("model=./x(1)", ["./x(1)"]), ("data=x", []),
    ],
)  # fmt: skip
def test_which_options_of_a_group_are_picked(argument, options):
    assert Overrides(prepare([argument], GROUPS)).choices("model", ["small", "tiny"]) == options


@pytest.mark.parametrize("value", ["[a,b]", "{a:1}"])
def test_options_of_a_group_are_not_merged(value):
    with pytest.raises(ConfigError, match=r"must be one name; .* -m model=<name>,<name>"):
        Overrides([f"model={value}"]).choices("model")


# Names


@UNHURRIED
@given(text=st.text(max_size=200))
def test_a_safe_name_holds_only_legal_characters(text):
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", name)
    assert name.strip("-.") == name
    assert name == safe_name(text)


NEARLY_SAFE = st.text("ab=,_-. é", max_size=5)


@settings(deadline=None, max_examples=1000)
@given(one=NEARLY_SAFE, other=NEARLY_SAFE)
@example("a=b", "a-b")
@example("a,b", "a_b")
@example("", "run")
@example("a", "a-")
def test_other_text_other_safe_name(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


@pytest.mark.parametrize("letter", ["a", "é"])
def test_long_names_differ_by_their_ends(letter):
    names = {safe_name(letter * 300 + end) for end in "abc"}
    assert len(names) == 3


@pytest.mark.parametrize("name", ["run", "a.b_c-d", "2024"])
def test_a_safe_name_stays(name):
    assert safe_name(name) == name


# Sweeps

SWEEP = ["optim.lr=1e-3,2e-3", "model.depth=2,4"]


def folder_of(*lines):
    return sweep_folder(Overrides(prepare([*lines], GROUPS)))


def test_a_sweep_is_found_again():
    folder = folder_of(*SWEEP)
    assert folder.parent == Path("outputs")
    assert re.fullmatch(r"sweep-[0-9a-f]{8}", folder.name)
    assert folder_of(*reversed(SWEEP)) == folder
    assert folder_of(*SWEEP, "seed=1") != folder


def test_the_folder_of_a_sweep_never_changes():
    # A change would make every unfinished sweep start again.
    assert sweep_folder(Overrides(["++a=1,2"])).name == "sweep-9d2bac66"


def test_a_named_sweep_lies_under_its_name():
    named = folder_of(*SWEEP, "name=mine", "outputs=~/my runs")
    assert named == Path("~/my runs/mine").expanduser()


def test_a_sweep_without_a_name_is_not_called_null():
    assert folder_of(*SWEEP, "name=null").name.startswith("sweep-")


def test_the_folder_of_a_sweep_is_the_one_that_was_typed():
    assert folder_of(*SWEEP, "outputs=it's").parent == Path("it's")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["-m", "a=1,2"], True), (["a=1", "--multirun"], True), (["sweep=lr_wd"], True),
     (["sweep=null"], False), (["a=-m"], False), ([], False)],
)  # fmt: skip
def test_what_is_a_sweep(argv, expected):
    flags, lines = split(argv)
    assert is_sweep(flags, Overrides(lines)) == expected
