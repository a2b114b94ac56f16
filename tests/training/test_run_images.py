"""A data set that changed after the run started: never another run, never a training image scored
in silence.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from changing_data import CHANGES, CLASSES, Words, World, add_one, draw, scored
from commands import SMALL
from pictures import noise, save

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli import front
from vit.cli.eval import evaluate
from vit.cli.train import train
from vit.data.manifest import Manifest

pytestmark = pytest.mark.slow

TRAINED = [
    *SMALL, "data=folder", "data.image_size=8", "trainer.batch_size=8", "trainer.steps=6",
]  # fmt: skip


def command(name: str, *args: str) -> int:
    """Run a command in this process; its exit code."""
    sys.argv = [f"vit-{name}", *args]
    return front.run(name, {"train": train, "eval": evaluate}[name])


@pytest.fixture(autouse=True)
def own_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture(scope="module", params=["flat", "split"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and a run on them, `outputs/run`: without or with named splits."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "flat":
        draw(folder / "photos")
    else:
        draw(folder / "photos" / "train")
        for label, name in enumerate(CLASSES):
            for i in range(4):
                place = folder / "photos" / "test" / name / f"{i:02}.png"
                save(place, noise(8, 8, seed=1000 + 10 * label + i))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert command("train", *TRAINED, "data.root=photos", "name=run") == 0
        assert command("eval", "checkpoint=outputs/run", "output=before", "report=false") == 0
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A copy to change, in place of the one that was trained on."""
    aside = trained.with_name("aside")
    trained.rename(aside)
    shutil.copytree(aside, trained)
    monkeypatch.chdir(tmp_path)
    yield World(trained)
    shutil.rmtree(trained)
    aside.rename(trained)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_data_set(
    world: World, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act, on_resume, on_eval = CHANGES[change]
    split = world.classes != world.root
    if split and change in ("class renamed", "class added", "class removed"):
        for part in ("test",):
            act(type("Test", (), {"classes": world.root / part}))  # type: ignore[arg-type]
    act(world)
    capsys.readouterr()

    code = command("eval", f"checkpoint={world.run.path}", "output=out", "report=false")
    told = capsys.readouterr().err
    check(code, told, on_eval)
    if code == 0:
        metrics, seen = scored(world, tmp_path / "out")
        assert metrics["trained_on"] in (seen, None)
        assert (seen > 0) == ("trained on by" in told) or metrics["trained_on"] is None
        assert metrics["trained_on"] is not None or "is not known" in told
        if "of test" not in told and "as they are now" not in told and "not known" not in told:
            assert (metrics["loss"], metrics["images"]) == (
                world.before["loss"], world.before["images"],
            )  # fmt: skip

    code = command("train", f"resume={world.run.path}", "trainer.steps=8")
    told = capsys.readouterr().err
    check(code, told, on_resume)
    if code == 0:
        now = Manifest.from_bytes(world.run.images.read_bytes())
        assert now.digest() == world.manifest.digest()
        assert world.run.read_summary()["step"] == 8


def check(code: int, told: str, expected: Words) -> None:
    if expected is None:
        assert (code, told) == (0, "")
    elif expected.startswith("!"):
        assert (code, expected[1:] in told) == (2, True), told
    else:
        assert (code, expected in told) == (0, True), told


def test_removed_images_may_be_skipped(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    gone = world.one("train")
    gone.unlink()
    skip = ["data.on_bad_image=skip", "data.bad_image_limit=0.1", "trainer.steps=20"]
    assert command("train", f"resume={world.run.path}", *skip) == 0
    told = capsys.readouterr().err
    assert "images gone since the run started: 1 (" in told
    logged = [json.loads(line) for line in world.run.metrics.read_text().splitlines()]
    assert [line["bad_images"] for line in logged if line["event"] == "train"][-1] == 1
    for name in world.splits["train"][1:7]:
        (world.root / name).unlink()
    before = contents(world.run.path)
    longer = [f"resume={world.run.path}", "trainer.steps=22"]
    assert command("train", *longer) == 2
    remedy = re.search(r"7 of the run's images .* go on without them with (.*)\n", told_of(capsys))
    assert remedy is not None
    assert re.fullmatch(r"data\.bad_image_limit=0\.\d+", remedy[1])
    assert contents(world.run.path) == before  # what was refused has changed nothing
    assert command("train", *longer, *remedy[1].split()) == 0


def test_the_remedy_for_other_classes_is_whole(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class was renamed on purpose: the command that is named trains on what is there now."""
    before = contents(world.run.path)
    for place in {world.classes, world.root / "test"}:
        if (place / "rose").is_dir():
            (place / "rose").rename(place / "peony")
    assert command("train", f"resume={world.run.path}", "trainer.steps=8") == 2
    remedy = re.search(r"start a new run from its weights: (vit-train .*)\n", told_of(capsys))
    assert remedy is not None
    assert contents(world.run.path) == before
    args = [arg for arg in TRAINED if arg != "data=folder"]
    assert command("train", *shlex.split(remedy[1])[1:], *args, "name=again") == 0
    saved = checkpoint.load(RunDir(Path("outputs/again")).best)
    assert saved["classes"] == ["daisy", "peony", "tulip"]


def test_the_remedy_for_removed_images_is_whole(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in world.splits["train"][:5]:
        (world.root / name).unlink()
    before = contents(world.run.path)
    longer = [f"resume={world.run.path}", "trainer.steps=20"]
    assert command("train", *longer, "trainer.save_every=3") == 2
    remedy = re.search(r"go on without them with (data\.on_bad.*)\n", told_of(capsys))
    assert remedy is not None
    assert contents(world.run.path) == before
    assert command("train", *longer, *remedy[1].split()) == 0


def test_a_folder_of_other_images_is_called_that(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, label in enumerate(CLASSES):
        for i in range(6):
            save(tmp_path / "other" / label / f"{label}-{i}.png", noise(9, 9, seed=9 * number + i))
    before = contents(world.run.path)
    args = [f"resume={world.run.path}", f"data.root={tmp_path / 'other'}"]
    assert command("train", *args, "data.on_bad_image=skip", "trainer.steps=22") == 2
    assert "holds none of the run's images; give the folder that the run was" in told_of(capsys)
    assert contents(world.run.path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_moved_data_set_and_a_moved_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another working folder, the run and then the data elsewhere."""
    shutil.move(world.run.path, tmp_path / "elsewhere")
    args = ["checkpoint=elsewhere", "report=false", "output=out"]
    assert command("eval", *args) == 0
    assert command("train", "resume=elsewhere", "trainer.steps=7") == 0
    assert capsys.readouterr().err == ""
    shutil.move(world.root, tmp_path / "moved")
    for refused in (["eval", *args], ["train", "resume=elsewhere", "trainer.steps=8"]):
        assert command(*refused) == 2
        told = capsys.readouterr().err
        assert f"data.root={world.root}" in told
        assert "data.root=<" in told
    assert command("eval", *args, "data.root=moved") == 0
    assert command("train", "resume=elsewhere", "trainer.steps=8", "data.root=moved") == 0
    assert capsys.readouterr().err == ""
    world.root = tmp_path / "moved"
    metrics, seen = scored(world, tmp_path / "out")
    assert (metrics["images"], metrics["trained_on"], seen) == (world.before["images"], 0, 0)
    shutil.move(tmp_path / "moved", world.root.with_name("again"))


def as_old(world: World) -> None:
    """The run as an earlier version would have left it."""
    for file in [*world.run.step_files(), world.run.best]:
        content = checkpoint.load(file)
        del content["format_version"]
        content["images"] = None
        del content["config"]["data"]["split_by"]
        checkpoint.save(file, content)
    text = world.run.config.read_text()
    kept = [line for line in text.splitlines() if "split_by" not in line]
    world.run.write_config("\n".join(kept) + "\n")
    world.run.images.unlink()


def test_a_run_of_an_earlier_version_is_said_to_know_no_list(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    as_old(world)
    add_one(world)
    assert command("eval", f"checkpoint={world.run.path}", "report=false", "output=out") == 0
    assert "is not known" in capsys.readouterr().err
    assert command("train", f"resume={world.run.path}", "trainer.steps=8") == 0
    assert "kept no list of its images" in capsys.readouterr().err
    assert checkpoint.load(world.run.step_file(8))["config"]["data"]["split_by"] == "position"
    assert world.run.images.is_file()


def test_a_run_started_from_a_run_knows_the_images_of_both(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*TRAINED, f"data.root={world.classes}", "data.split_seed=3", f"outputs={tmp_path}",
            "data.test_fraction=0.6"]  # fmt: skip
    assert command("train", *args, f"model.weights={world.run.path}", "name=second") == 0
    out = capsys.readouterr().out
    assert "left out of test" in out
    run = RunDir(tmp_path / "second")
    second = Manifest.from_bytes(run.images.read_bytes())
    tested = {(world.classes / name).read_bytes() for name in second.splits["test"].names}
    assert tested
    assert not tested & world.contents
    # A third one, from the second, on images that the first one was trained on.
    first = tmp_path / "first"
    for name in world.splits["train"]:
        place = first / Path(name).parent.name / Path(name).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(world.pixels[name])
    assert command("eval", f"checkpoint={run.path}", f"images={first}", "report=false") == 0
    count = len(world.splits["train"])
    assert f"{count} of the {count} images were trained on" in capsys.readouterr().err


def test_a_checkpoint_alone_says_that_it_does_not_know(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(world.run.best, tmp_path / "model.pt")
    args = ["checkpoint=model.pt", "report=false"]
    assert command("eval", *args) == 0
    assert capsys.readouterr().err == ""  # the data set is as it was
    add_one(world)
    assert command("eval", *args) == 0
    assert "is not known" in capsys.readouterr().err
