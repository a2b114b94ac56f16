"""From Python: `vit.train` and `vit.load_run` give the numbers of the commands."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise, save
from PIL import Image

import vit
from vit.artifacts.run_dir import RunDir
from vit.errors import ConfigError, DataError, NoCheckpointError, VitError

SHORT = ["trainer.epochs=null", "trainer.steps=4", "model.depth=1", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("door") / "photos"
    for label, name in enumerate("ab"):
        for i in range(20):
            pixels = np.asarray(noise(40, 50, seed=100 * label + i)) // 2
            save(root / name / f"{i:02}.png", Image.fromarray(pixels + 100 * label))
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> vit.Run:
    return vit.train(
        [*SHORT, "data=folder", f"data.root={photos}", "data.image_size=32", "name=own",
         "trainer.batch_size=8", "trainer.steps=20", "trainer.precision=fp32",
         f"outputs={tmp_path_factory.mktemp('runs')}"]
    )  # fmt: skip


def command(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", f"vit.cli.{program}", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_a_second_call_trains_as_the_first(tmp_path: Path) -> None:
    def weights(name: str) -> torch.Tensor:
        found = vit.train([*SHORT, f"outputs={tmp_path}", f"name={name}"])
        assert found.path == RunDir(tmp_path / name).best
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert found.scores["test_top1"] == summary["test_top1"]
        assert summary["state"] == "finished"
        return found.model.head.weight

    assert torch.equal(weights("first"), weights("second"))


def test_a_run_says_what_it_is(run: vit.Run) -> None:
    assert repr(run) == f"Run({str(run.path)!r}, step 20, classes ['a', 'b'])"


def test_a_run_goes_on(tmp_path: Path) -> None:
    first = vit.train([*SHORT, f"outputs={tmp_path}", "name=x"])
    assert vit.load_run(tmp_path / "x" / "checkpoints" / "step-000000004.pt").step == 4
    more = vit.train([f"resume={tmp_path / 'x'}", "trainer.steps=8"])
    steps = [path.stem for path in RunDir(tmp_path / "x").step_files()]
    assert steps[0] == "step-000000008"
    assert more.path == first.path


def test_predictions_are_those_of_the_command(run: vit.Run, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "labels.csv"
    command("predict", f"checkpoint={run.path}", f"images={photos}", f"output={output}", "top=2")
    with output.open() as file:
        rows = list(csv.DictReader(file))
    found = run.predict(photos, top=2)
    assert [p.name for p in found] == [row["image"] for row in rows]
    assert [p.label for p in found] == [row["label"] for row in rows]
    assert [f"{p.probability:.6f}" for p in found] == [row["probability"] for row in rows]
    assert len({p.label for p in found}) == 2
    assert len({p.probability for p in found}) == 40
    assert all(sum(p.probabilities) == pytest.approx(1) for p in found)


def test_an_image_is_the_same_from_a_path_from_pillow_and_as_an_array(
    run: vit.Run, photos: Path
) -> None:
    path = photos / "a" / "03.png"
    image = Image.open(path)
    expected = run.transform(path)
    assert expected.shape == (3, 32, 32)
    for given in (str(path), image, np.array(image)):
        assert torch.equal(run.transform(given), expected)
        assert np.array_equal(run.embed(given), run.embed([path]))
    with torch.no_grad():
        logits = run.model(expected[None])
    answer = run.predict(image, top=9)[0]
    assert answer.name == "image 0"
    assert sorted(answer.labels) == run.classes
    assert answer.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)


def test_gray_and_transparent_images_are_seen_as_in_files(run: vit.Run, tmp_path: Path) -> None:
    gray, clear = noise(40, 50, "L", seed=7), noise(40, 50, seed=8).convert("RGBA")
    clear.putalpha(100)
    for number, image in enumerate((gray, clear)):
        image.save(tmp_path / f"{number}.png")
        assert torch.equal(run.transform(image), run.transform(tmp_path / f"{number}.png"))
    assert torch.equal(run.transform(np.array(gray)), run.transform(np.array(gray)[..., None]))


def test_answers_come_in_the_order_of_the_images(run: vit.Run, photos: Path) -> None:
    paths = [photos / "b" / "05.png", photos / "a" / "11.png", photos / "b" / "01.png"]
    assert [p.name for p in run.predict([*paths, np.zeros((9, 9, 3), np.uint8)])] == [
        *map(str, paths), "image 3",
    ]  # fmt: skip
    # How many images are in a batch decides in which order sums are rounded.
    np.testing.assert_allclose(run.embed(paths)[1], run.embed(paths[1])[0], atol=1e-5)


def test_embeddings_are_what_the_head_sees(run: vit.Run, photos: Path) -> None:
    embedded = torch.from_numpy(run.embed(photos / "a"))
    assert embedded.shape == (20, run.model.config.dim)
    logits = embedded @ run.model.head.weight.detach().T + run.model.head.bias.detach()
    ours = [run.classes[k] for k in logits.argmax(dim=1).tolist()]
    assert ours == [p.label for p in run.predict(photos / "a")]


def test_attention_shows_where_the_model_looks(run: vit.Run, photos: Path) -> None:
    side = 32 // run.model.config.patch_size
    for method in ("rollout", "relevance", "attention"):
        (found,) = run.attention(photos / "a" / "00.png", method)
        heat = found.heats[method]
        assert heat.shape == (side, side)
        assert 0 <= heat.min() < heat.max() <= 1
        assert found._repr_png_().startswith(b"\x89PNG")
    assert "relevance for" in run.attention(photos / "a" / "00.png", "relevance", "b")[0].caption


def test_evaluation_is_that_of_the_command(run: vit.Run, tmp_path: Path) -> None:
    for split in ("val", "test"):
        output = tmp_path / split
        arguments = [f"split={split}", "tta=flip"]
        command("eval", f"checkpoint={run.path}", *arguments, f"output={output}", "report=false",
                "device=cpu")  # fmt: skip
        assert run.evaluate(*arguments) == json.loads((output / "metrics.json").read_text())
    assert run.evaluate("split=val")["top1"] == run.scores["val_top1"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda run: vit.train("seed=1"), r"give a list of settings: vit.train\(\['seed=1'\]\)"),
        (lambda run: vit.train(["-m", "seed=1"]), "-m is for the command line"),
        (lambda run: vit.train(["seed=1,2"]), "seed=1,2 asks for several runs; write a loop"),
        (lambda run: vit.train(["sweep=lr_wd"]), "sweep asks for several runs"),
        (lambda run: vit.train(["model.dpeth=3"]), "did you mean model.depth"),
        (lambda run: vit.train(["data=cifar"]), "did you mean cifar10"),
        (lambda run: vit.train(["data=~/photos"]), "try data=folder data.root=~/photos"),
        (lambda run: vit.train(["optim.lr=("]), "cannot be read; put special characters in quotes"),
        (lambda run: vit.train(["optim.lr=${nope}"]), "nope"),
        (lambda run: run.evaluate("split=nope"), "split=nope must be one of val, test"),
        (lambda run: run.predict([]), "there are no images"),
        (lambda run: run.predict(3), "image 0 is of type int; give a path"),
        (lambda run: run.predict(np.zeros((3, 9, 9), np.float32)), r"not float32 \(3, 9, 9\)"),
        (lambda run: run.predict(np.zeros((9, 9, 2), np.uint8)), r"not uint8 \(9, 9, 2\)"),
        (lambda run: run.predict(b"abc"), "image 0 is of type bytes"),
        (lambda run: run.predict(np.zeros((0, 9, 3), np.uint8)), r"not uint8 \(0, 9, 3\)"),
        (
            lambda run: run.predict(np.zeros((9, 9), np.uint8), top=0),
            "top=0 must be a whole number",
        ),
        (lambda run: run.predict(np.zeros((9, 9), np.uint8), top=2.5), "top=2.5 must be a whole"),
        (lambda run: run.attention(np.zeros((9, 9), np.uint8), "rolout"), "none of rollout, rel"),
        (lambda run: run.attention(np.zeros((9, 9), np.uint8), ["rollout"]), "none of rollout"),
        (lambda run: run.transform(run.config["data"]["root"]), "has 40 images; give one"),
        (lambda run: run.evaluate("checkpoint=outputs/other"), "are those of this run"),
        (lambda run: run.evaluate("device=cuda"), "are those of this run"),
        (lambda run: run.evaluate(["split=val"]), r"\['split=val'\] is no text"),
        (lambda run: vit.train([1]), "1 is no text; give settings"),
        (lambda run: vit.train(["hello"]), "hello is no setting"),
        (lambda run: vit.train(["--help"]), "--help is for the command line"),
        (lambda run: vit.load_run(run.path, device="bogus"), "device=bogus: "),
        (lambda run: run.attention(np.zeros((9, 9), np.uint8), label="A"), "none of the model's"),
    ],
)
def test_a_slip_is_answered_in_a_line(run: vit.Run, call, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        call(run)
    assert len(str(raised.value).splitlines()) == 1


def test_missing_and_damaged_images_are_named(run: vit.Run, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        run.predict(tmp_path / "nowhere")
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no image")
    for ask in (run.predict, run.embed, run.attention):
        with pytest.raises(DataError, match=r"damaged.jpg cannot be decoded.*\n1 of 2 images"):
            ask([photos / "a" / "00.png", damaged])
    with pytest.raises(DataError, match=r"damaged.jpg cannot be decoded"):
        run.transform(damaged)


def test_an_image_that_pillow_cannot_read_to_its_end_is_named(
    run: vit.Run, photos: Path, tmp_path: Path
) -> None:
    noise(90, 90, seed=3).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    with (
        Image.open(tmp_path / "cut.jpg") as image,
        pytest.raises(DataError, match="image 1 cannot"),
    ):
        run.predict([photos / "a" / "00.png", image])


def test_a_run_is_found_from_home_and_from_any_folder(
    run: vit.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = RunDir.of(run.path).path.parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for place in ("~/own", "own"):
        found = vit.load_run(place)
        assert found.path == run.path
    monkeypatch.chdir(tmp_path)
    assert found.evaluate("split=val")["top1"] == run.scores["val_top1"]


def test_what_was_trained_on_since_is_not_evaluated_as_it_was(tmp_path: Path) -> None:
    before = vit.train([*SHORT, f"outputs={tmp_path}", "name=x"])
    more = vit.train([f"resume={tmp_path / 'x'}", "trainer.steps=40"])
    assert more.step > before.step == 4
    with pytest.raises(ConfigError, match=f"step {more.step} now, and had those of step 4"):
        before.evaluate("split=val")


def test_scores_are_numbers(tmp_path: Path) -> None:
    found = vit.train([*SHORT, f"outputs={tmp_path}", "name=x"])
    run = RunDir(tmp_path / "x")
    run.write_summary({**run.read_summary(), "state": "interrupted", "test_top1": None})
    assert found.scores.keys() >= {"val_top1", "test_loss"}
    assert all(isinstance(value, float) for value in found.scores.values())


def test_two_threads_may_train_at_once(tmp_path: Path) -> None:
    def train(name: str) -> float:
        return vit.train([*SHORT, f"outputs={tmp_path}", f"name={name}"]).scores["test_loss"]

    with ThreadPoolExecutor(2) as threads:
        names = [f"run{i}" for i in range(4)]
        scores = list(threads.map(train, names))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(np.isfinite(scores))


def test_what_cannot_be_trained_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VitError, match="is no folder; check the path"):
        vit.train(["data=folder", f"data.root={tmp_path / 'no'}", f"outputs={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()
    with pytest.raises(NoCheckpointError, match="is no run folder"):
        vit.train([f"resume={tmp_path}"])


def test_a_script_needs_no_guard_for_workers(photos: Path, tmp_path: Path) -> None:
    """Workers do not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\nimport vit\n"
        f"run = vit.train({SHORT} + ['data=folder', 'data.root={photos}', 'data.image_size=32',\n"
        f"    'data.memory=stream', 'data.workers=1', 'trainer.batch_size=8', 'name=x'])\n"
        "print(len(run.predict(run.config['data']['root'])))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines.count("once"), lines[-1]) == (1, "40")
