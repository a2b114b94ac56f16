"""Groups and folds: what they are made of, and what contradicts them."""

import pytest
from composing import composed
from pictures import BLUE, RED, data_config, save, write

from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.errors import ConfigError, DataError


def config_of(path, **changes):
    return data_config("table", root=str(path), image_size=16, **changes)


def photos(root, names=("1.jpg", "2.jpg", "sub/3.jpg", "4.PNG")):
    for number, name in enumerate(names):
        save(root / name, (RED, BLUE)[number % 2])
    return root


def test_a_column_or_a_pattern_makes_groups(tmp_path):
    rows = [f"p{i % 12}/{i}.png" for i in range(60)]
    photos(tmp_path, rows)
    text = "".join(f"{name},{'ab'[i % 2]},{name.split('/')[0]}\n" for i, name in enumerate(rows))
    write(tmp_path / "t.csv", f"image,label,patient\n{text}".encode())
    by_column = load_data_set(config_of(tmp_path / "t.csv", group_column="patient"))
    by_path = load_data_set(config_of(tmp_path / "t.csv", group=r"^(\w+)/"))
    groups = {split: set(own.groups) for split, own in by_column.splits.items()}
    assert sum(map(len, groups.values())) == 12
    assert {split: set(own.groups) for split, own in by_path.splits.items()} == groups
    assert by_column.notes[-1] == "groups: " + ", ".join(
        f"{len(g)} in {s}" for s, g in groups.items()
    )
    write(tmp_path / "t.csv", f"image,label,patient\n{text}p0/x.png,a,\n".encode())
    with pytest.raises(DataError, match="line 62 has no group"):
        load_data_set(config_of(tmp_path / "t.csv", group_column="patient"))


FOLDS = {
    "a fold of none": (["data.fold=1"], "data.fold=1 needs data.folds="),
    "none of the folds": (["data.folds=3"], "all: -m data.fold=0,1,2"),
    "a fold too far": (["data.folds=3", "data.fold=3"], "try one from 0 to 2"),
    "two ways": (["data=table", "data.root=x", "data.group=x", "data.group_column=y"], "give one"),
    "no paths": (["data.group=x"], "data=digits has no paths"),
    "no pattern": (["data=folder", "data.root=x", "data.group='('"], "is no regular expression"),
}


@pytest.mark.parametrize("what", FOLDS)
def test_folds_and_groups_that_contradict_are_answered(what):
    given, told = FOLDS[what]
    with pytest.raises(ConfigError) as caught:
        to_config(composed(*given))
    assert told in str(caught.value)
