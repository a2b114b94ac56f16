"""The front door: any path survives Hydra's grammar, and every mistake is answered in one line."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vit.cli.argv import PATH_KEYS, prepare, safe_name, value_of
from vit.cli.front import is_sweep, sweep_folder
from vit.config.errors import ConfigError

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


def command(*arguments, cwd):
    """Run vit-train; returns what it did and how long it took."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vit.cli.train", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, time.monotonic() - start


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
        ("+outputs=a b", "a b"),
        ("++outputs=a b", "a b"),
    ],
)
def test_null_quotes_lists_and_signs_stay(argument, value):
    (prepared,) = prepare([argument], GROUPS)
    assert parsed(argument)[1] == value
    if not argument.startswith("+") and "outputs" not in argument:
        assert prepared == f"++{argument}"


@pytest.mark.parametrize("path", ["'90s photos", '"a', "[1] flowers"])
def test_a_path_that_only_begins_like_a_quote_or_a_list(path):
    assert parsed(f"data.root={path}")[1] == path


def test_a_folder_with_an_equals_sign_stays_with_its_option():
    assert prepare(["--config-dir", "./my=configs"], GROUPS) == ["--config-dir", "./my=configs"]


@pytest.mark.parametrize("value", ["a=b", "(1)", "it's", "1e-3", "[1,2]", "{a:1}", "1,2"])
def test_other_values_are_hydras(value):
    assert prepare([f"optim.lr={value}"], GROUPS) == [f"++optim.lr={value}"]


# The other arguments


@pytest.mark.parametrize(
    ("given_", "added"),
    [
        (["trainer.steps=5"], ["++trainer.epochs=null"]),
        (["trainer.epochs=5"], ["++trainer.steps=null"]),
        (["+trainer.epochs=5"], ["++trainer.steps=null"]),
        (["trainer.epochs=1,2"], ["++trainer.steps=null"]),
        (["trainer.epochs=5", "trainer.steps=5"], []),
        (["optim.lr=1"], []),
        ([], []),
        (["trainer.steps=null"], []),
    ],
)
def test_steps_and_epochs_replace_each_other(given_, added):
    assert prepare(given_, GROUPS)[len(given_) :] == added


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_groups_are_left_alone(group, sign):
    assert prepare([f"{sign}{group}=small"], GROUPS) == [f"{sign}{group}=small"]


@pytest.mark.parametrize(
    "argument", ["hydra.verbose=true", "hydra/launcher=basic", "model@other=small", "~optim.lr"]
)
def test_hydras_own_words_are_left_alone(argument):
    assert prepare([argument], GROUPS) == [argument]


def test_unknown_keys_reach_the_checks():
    assert prepare(["nonsense.key=1"], GROUPS) == ["++nonsense.key=1"]


@pytest.mark.parametrize("flag", ["--epochs", "--epochs=10", "-x", "--lr", "-mm", "--Help"])
def test_an_option_that_does_not_exist_is_refused(flag):
    with pytest.raises(ConfigError, match=r"is no option.*key=value.*--help") as raised:
        prepare(["model=small", flag, "10"], GROUPS)
    assert str(raised.value).startswith(flag)


@pytest.mark.parametrize(
    "flags", [["-m"], ["--multirun"], ["--cfg", "job"], ["--config-dir", "mine"], ["-cd=mine"]]
)
def test_hydras_options_come_first_and_unchanged(flags):
    assert prepare(["seed=1", *flags, "model=small"], GROUPS) == [*flags, "++seed=1", "model=small"]


def test_prepared_arguments_parse_in_one_piece():
    prepared = prepare(["seed=1", "data.root=a (b)='c'", "trainer.steps=5", "model=tiny"], GROUPS)
    keys = [override.key_or_group for override in PARSER.parse_overrides(prepared)]
    assert keys == ["seed", "data.root", "trainer.steps", "model", "trainer.epochs"]


def test_the_last_value_counts():
    assert value_of(["name=a", "++name='b c'", "names=d"], "name") == "b c"
    assert value_of(["outputs=a=b"], "outputs") == "a=b"
    assert value_of(["-m", "name"], "name") is None


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

SWEEP = ["-m", "optim.lr=1e-3,2e-3", "model.depth=2,4"]


def test_a_sweep_is_found_again():
    folder = sweep_folder(prepare(SWEEP, GROUPS))
    assert folder.parent == Path("outputs")
    assert re.fullmatch(r"sweep-[0-9a-f]{8}", folder.name)
    assert sweep_folder(prepare(["--multirun", *reversed(SWEEP[1:])], GROUPS)) == folder
    assert sweep_folder(prepare([*SWEEP, "seed=1"], GROUPS)) != folder


def test_the_folder_of_a_sweep_never_changes():
    # A change would make every unfinished sweep start again.
    assert sweep_folder(["-m", "++a=1,2"]).name == "sweep-9d2bac66"


def test_a_named_sweep_lies_under_its_name():
    named = prepare([*SWEEP, "name=mine", "outputs=~/my runs"], GROUPS)
    assert sweep_folder(named) == Path("~/my runs/mine").expanduser()


def test_a_sweep_without_a_name_is_not_called_null():
    assert sweep_folder(prepare([*SWEEP, "name=null"], GROUPS)).name.startswith("sweep-")


def test_the_folder_of_a_sweep_is_the_one_that_was_typed():
    assert sweep_folder(prepare([*SWEEP, "outputs=it's"], GROUPS)).parent == Path("it's")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["-m", "a=1,2"], True), (["a=1", "--multirun"], True), (["sweep=lr_wd"], True),
     (["sweep=null"], False), (["a=-m"], False), ([], False)],
)  # fmt: skip
def test_what_is_a_sweep(argv, expected):
    assert is_sweep(argv) == expected


# Mistakes, from the command line

MISTAKES = {
    "typo in a key": (["trainer.epoch=10"], ["trainer.epoch", "did you mean trainer.epochs?"]),
    "typo in a section": (["modle.dim=64"], ["modle.dim", "did you mean model.dim?"]),
    "typo in a group": (["mdoel=small"], ["mdoel", "did you mean model"]),
    "right key, wrong section": (["data.batch_size=8"], ["did you mean trainer.batch_size?"]),
    "no such option": (["data=cifar"], ["data=cifar", "cifar10, cifar100, digits, folder"]),
    "no such experiment": (
        ["experiment=cifar"],
        ["experiment=cifar", "choose one of cifar10_quick"],
    ),
    "a number for a group": (["trainer=5"], ["trainer=5", "default"]),
    "null for a group": (["model=null"], ["model=null", "tiny"]),
    # BUG? "Could not find 'trainer/' Available options in 'trainer':" and then none
    "nothing for a group": (["trainer="], ["trainer=", "default"]),
    "wrong type": (["trainer.batch_size=many"], ["trainer.batch_size=many", "a whole number"]),
    "not whole": (["trainer.batch_size=1.5"], ["trainer.batch_size=1.5", "a whole number"]),
    "out of range": (["optim.lr=-1"], ["optim.lr=-1", "[0, "]),
    "not a number": (["optim.lr=nan"], ["optim.lr=nan", "[0, "]),
    "infinite": (["trainer.epochs=inf"], ["trainer.epochs=inf", "[1e-12, 1e+12]"]),
    "unknown name": (["model.pool=clss"], ["model.pool=clss", "did you mean cls?"]),
    "heads": (["model.dim=65"], ["model.dim=65", "model.heads=4", "try 64 or 68"]),
    "quarters": (
        ["model.dim=66", "model.heads=6", "model.positions=sincos2d"],
        ["model.dim=66", "model.positions=sincos2d", "try 64 or 68"],
    ),
    "patches": (["model.patch_size=3"], ["model.patch_size=3", "data.image_size=8", "2 or 4"]),
    "epochs and steps": (
        ["trainer.epochs=1", "trainer.steps=10"],
        ["trainer.epochs=1", "trainer.steps=10", "give only one"],
    ),
    "neither": (["trainer.epochs=null"], ["trainer.epochs=null", "e.g. trainer.epochs=10"]),
    "parts of a batch": (
        ["trainer.accumulate=3"],
        ["trainer.batch_size=64", "trainer.accumulate=3", "try 63 or 66"],
    ),
    "an odd batch": (
        ["trainer.batch_size=63", "augment=strong"],
        ["trainer.batch_size=63", "augment.mixup", "try 62 or 64"],
    ),
    "early stopping": (
        ["trainer.early_stop=3", "data.val_fraction=0"],
        ["trainer.early_stop=3", "data.val_fraction=0", "try data.val_fraction=0.1"],
    ),
    "nothing to train on": (
        ["data.val_fraction=0.5", "data.test_fraction=0.5"],
        ["data.val_fraction=0.5", "data.test_fraction=0.5", "try 0.1 each"],
    ),
    "channels": (["data.mean=[0.5,0.5]"], ["data.mean=[0.5, 0.5]", "data.std", "1 (gray) or 3"]),
    "folder without root": (["data=folder"], ["data.root=<folder with one sub-folder per class>"]),
    "no such folder": (
        ["data=folder", "data.root=/no/such (place)"],
        ["data.root=/no/such (place)", "no folder", "check the path"],
    ),
    "a name with a space": (["name=my run!"], ["name=my run!", "letters, digits"]),
    "a name that leads out": (["name=../run"], ["name=../run", "letters, digits"]),
    "auto without name": (["resume=auto"], ["resume=auto", "name=<run name>"]),
    "duration": (["trainer.eval_every=5min"], ["trainer.eval_every=5min", "epochs (2ep)"]),
    "one checkpoint": (["trainer.keep=1"], ["trainer.keep=1", "2 or more"]),
    "one beta": (["optim.betas=[0.9]"], ["optim.betas=[0.9]", "2 entries"]),
    "no list": (["optim.betas=0.9"], ["optim.betas=0.9", "must be a list"]),
    "missing": (["~optim.lr"], ["optim.lr is missing"]),
    "a flag": (["--epochs", "10"], ["--epochs is no option", "key=value", "trainer.epochs=10"]),
    "a bracket": (["optim.betas=[0.9"], ["optim.betas"]),
    "no equals sign": (["trainer.epochs"], ["trainer.epochs", "--help"]),
    "a sweep without -m": (["optim.lr=1e-3,2e-3"], ["optim.lr=1e-3,2e-3", "-m"]),
    "no such config folder": (["--config-dir", "/no/such"], ["/no/such", "not found"]),
    "no such config": (["--config-name", "foo"], ["--config-name is no option"]),
    # BUG? argparse answers, with the usage of Hydra's own options
    "an option without its value": (["--config-dir"], ["--config-dir needs a value"]),
    "settings of a sweep": (["-m", "seed=1,2", "--cfg", "job"], ["--cfg"]),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_answered_at_once(kind, tmp_path):
    arguments, words = MISTAKES[kind]
    done, seconds = command(*arguments, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert all(line.startswith("vit-train: ") for line in done.stderr.splitlines())
    for word in words:
        assert word in done.stderr
    assert not any(tmp_path.glob("outputs/*"))
    if seconds >= 3:  # on a busy machine the better of two counts
        seconds = command(*arguments, cwd=tmp_path)[1]
    assert seconds < 3


def test_a_resumed_run_takes_no_group(tmp_path):
    shown, _ = command("--cfg", "job", cwd=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(shown.stdout)
    for group in ("model=small", "+model=small"):
        done, _ = command("resume=run", group, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "model" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_several_mistakes_take_one_line_each(tmp_path):
    done, _ = command("trainer.epoch=1", "optim.weight_decay=much", "model.dim=65", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for key in ("trainer.epoch ", "optim.weight_decay=much ", "model.dim=65 "):
        assert sum(line.startswith(f"vit-train: {key}") for line in lines) == 1


# Help, and settings of one's own


def test_help_is_immediate(tmp_path):
    times = []
    for flag in ("--help", "-h"):
        done, seconds = command("model=small", flag, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr == ""
        assert "trainer.epochs: " in done.stdout
        times.append(seconds)
    assert min(times) < 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["train", "eval"])
def test_help_imports_neither_torch_nor_hydra(program):
    code = f"""
import sys
sys.argv = ["vit-{program}", "--help"]
from vit.cli.{program} import main
try:
    main()
except SystemExit as end:
    assert not end.code
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"torch", "hydra", "omegaconf", "numpy", "sklearn"}}, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: vit-{program}" in done.stdout


def test_a_mistake_is_answered_without_torch(tmp_path):
    code = """
import sys
sys.argv = ["vit-train", "trainer.epoch=1"]
from vit.cli.train import main
try:
    main()
except SystemExit as end:
    assert end.code == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "trainer.epochs" in done.stderr


@pytest.mark.parametrize(
    "flags", [["--config-dir", "./my own"], ["--config-dir=./my own"], ["-cd", "./my own"]]
)
def test_options_of_ones_own(flags, tmp_path):
    (tmp_path / "my own" / "model").mkdir(parents=True)
    (tmp_path / "my own" / "model" / "mine.yaml").write_text(
        "defaults: [_base]\nname: mine\ndim: 32\ndepth: 2\nheads: 2\n"
    )
    done, _ = command(*flags, "model=mine", "model.depth=3", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load(done.stdout)["model"]
    assert (model["name"], model["dim"], model["depth"]) == ("mine", 32, 3)
    assert model["patch_size"] == "auto"  # from our _base.yaml
    assert [path.name for path in tmp_path.iterdir()] == ["my own"]


def test_a_group_of_ones_own(tmp_path):
    (tmp_path / "mine" / "hardware").mkdir(parents=True)
    (tmp_path / "mine" / "hardware" / "laptop.yaml").write_text(
        "# @package _global_\ntrainer:\n  batch_size: 16\n"
    )
    done, _ = command("--config-dir", "mine", "+hardware=laptop", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["trainer"]["batch_size"] == 16


def test_a_folder_without_settings_is_no_group(tmp_path):
    # BUG? IndexError in _check_groups: `--config-dir .` fails beside any folder without YAML files
    (tmp_path / "notes").mkdir()
    done, _ = command("--config-dir", ".", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_unreadable_yaml_of_ones_own_is_named(tmp_path):
    # BUG? traceback of yaml's ParserError, exit 1
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "broken.yaml").write_text("trainer:\n  epochs: [\n")
    done, _ = command("--config-dir", "mine", "experiment=broken", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert "broken.yaml" in done.stderr


def test_typos_in_yaml_of_ones_own_are_named(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "odd.yaml").write_text(
        "# @package _global_\ntrainr:\n  epochs: 3\noptim:\n  lr: fast\n"
    )
    done, _ = command("--config-dir", "mine", "experiment=odd", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean trainer.epochs?" in done.stderr
    assert "optim.lr=fast" in done.stderr


@pytest.mark.parametrize(
    "models", ["tiny,small", "choice(tiny,small)", "'tiny','small'", "tiny, small"]
)
def test_groups_are_swept_in_every_way_that_hydra_knows(models, tmp_path):
    # BUG? "model=choice(tiny does not exist": the value is split at its commas
    done, _ = command("-m", f"model={models}", "trainer.epochs=0", cwd=tmp_path)
    assert "does not exist" not in done.stderr
    assert done.stderr.count("trainer.epochs=0 must") == 2  # both jobs were started


def test_a_printed_config_is_what_was_asked_for(tmp_path):
    done, _ = command("trainer.steps=7", "data.root=a (b)", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = yaml.safe_load(done.stdout)
    assert (plain["trainer"]["steps"], plain["trainer"]["epochs"]) == (7, None)
    assert plain["data"]["root"] == "a (b)"
    assert not any(tmp_path.iterdir())
