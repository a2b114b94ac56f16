"""`vit-export` from the command line, and `scripts/serve_onnx.py` on what it wrote."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import serve_onnx
from commands import run
from exporting import trained
from pictures import encoded, noise, save, stripes, write
from PIL import Image

from vit.cli.export import output_path, prepare
from vit.config.commands import ExportConfig
from vit.config.validate import checked
from vit.config.yaml_files import config_dir, load_yaml
from vit.data.reading.decode import decode
from vit.data.reading.transform import Transform, resize
from vit.errors import ConfigError
from vit.export import formats

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = """
import sys, runpy
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "vit", "onnx", "simplejpeg"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def settings(**changes: object) -> dict[str, object]:
    """The defaults of vit-export with `changes`, for its checks."""
    plain = load_yaml((config_dir() / "export.yaml").read_text(), "export.yaml")
    del plain["defaults"]
    return {**plain, "checkpoint": "run", **changes}


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`finished` as an ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    done = run("export", f"checkpoint={finished}", "output=made/m.onnx", "limit=50", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "onnx, fp32, compared on 50 images of val:"
    assert [line.split()[0] for line in lines[1:]] == [
        "checkpoint", "top-1", "same", "largest", "size", "ms", "ms", "on", "probabilities",
        "made/m.onnx", "serve",
    ]  # fmt: skip
    assert "scripts/serve_onnx.py made/m.onnx --port" in lines[-1]
    assert lines[3].split()[-2:] == ["100.00", "%"]
    assert [path.name for path in (folder / "made").iterdir()] == ["m.onnx"]
    return folder / "made" / "m.onnx"


def test_openvino_runs_the_file_where_it_is_installed(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    args = ("output=m.onnx", "limit=20", "batch_size=3")
    done = run("export", str(finished), *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["checkpoint", "export", "openvino"]
    (same,) = (row for row in rows if row[:2] == ["same", "label"])
    assert same[2:] == ["100.00", "%", "100.00", "%"]
    (difference,) = (row for row in rows if row[0] == "largest")
    assert max(map(float, difference[-2:])) < 1e-4
    timed = [row for row in rows if row[0] == "ms"]
    assert [row[3] for row in timed] == ["1", "3"]
    assert all(float(cell) > 0 for row in timed for cell in row[-3:])


def test_an_export_goes_into_the_run_folder(finished: Path, tmp_path: Path) -> None:
    args = ["format=timm", "data.image_size=[12,8]", "precision=fp16", "split=test"]
    done = run("export", f"checkpoint={finished}", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = finished / "export" / "timm-12x8-fp16"
    assert done.stdout.startswith("timm, fp16, compared on 348 images of test:\n")
    assert done.stdout.endswith(f"\n  {folder}\n")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == [*"0123456789"]
    assert config["pretrained_cfg"]["input_size"] == [1, 12, 8]


def test_where_an_export_goes(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    inside = trained(tmp_path / "run" / "checkpoints" / "best.pt")
    inside.config["data"] = {"image_size": [8, 12]}
    for changes, place in (
        ({}, "run/export/model.onnx"),
        ({"precision": "int8"}, "run/export/model-int8.onnx"),
        ({"format": "torch"}, "run/export/model.pt2"),
        ({"format": "timm", "precision": "fp16"}, "run/export/timm-fp16"),
        ({"output": "x.onnx"}, "x.onnx"),
    ):
        found = output_path(checked(ExportConfig, settings(**changes), formats.CHECKS), inside)
        assert found in (tmp_path / place, Path(place))
    outside = trained(tmp_path / "some.pt")
    outside.config["data"] = {"image_size": 8}
    found = output_path(checked(ExportConfig, settings(), formats.CHECKS), outside)
    assert found == tmp_path / "some" / "export" / "model-8x12.onnx"


# What cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "onx"}, "format=onx must be one of onnx, torch, .*did you mean onnx"),
        ({"format": "torch", "precision": "int8"}, "precision=int8 .* format=torch; take "
         "precision=fp32 or fp16, or format=onnx$"),
        ({"precision": "int4"}, "precision=int4 must be one of fp32, fp16, int8"),
        ({"output": "model.pt"}, "output=model.pt must end in .onnx"),
        ({"format": "torch", "output": "m.onnx"}, "output=m.onnx must end in .pt2"),
        ({"format": "timm", "merge": 4}, "merge=4: format=timm holds weights, .* take merge=0, or "
         "format=onnx or torch"),
        ({"merge": -1}, "merge=-1 must be 0 or more"),
        ({"split": "train"}, "split=train must be one of val, test or null"),
        ({"limit": 0}, "limit=0 must be 1 or more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(changes: dict[str, object], words: str) -> None:
    checked(ExportConfig, settings(), formats.CHECKS)
    checked(ExportConfig, settings(format="timm", output="folder"), formats.CHECKS)
    with pytest.raises(ConfigError, match=words) as raised:
        checked(ExportConfig, settings(**changes), formats.CHECKS)
    assert len(raised.value.problems) == 1


def test_they_are_answered_before_torch_is_imported() -> None:
    script = (
        "import sys; from vit.cli import export; sys.argv[1:] = ['checkpoint=x', "
        "'format=torch', 'precision=int8']\n"
        "try: export.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in formats.FORMATS.values():
        kind.check_packages()
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    formats.FORMATS["timm"].check_packages()
    with pytest.raises(ConfigError, match=r"onnxruntime; pip install 'vit-train\[onnx\]'$"):
        formats.FORMATS["onnx"].check_packages()


def test_without_images_there_is_no_export(finished: Path, tmp_path: Path) -> None:
    args = ["images=nowhere", "output=x.onnx"]
    done = run("export", f"checkpoint={finished}", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert "images=nowhere is no folder" in done.stderr
    assert "images=<a folder with one sub-folder for each class>" in done.stderr
    assert all(line.startswith("vit-export: ") for line in done.stderr.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    with pytest.raises(ConfigError, match="is a file; choose a folder"):
        prepare(tmp_path / "file", "")
    for suffix in ("", ".onnx"):
        with pytest.raises(ConfigError, match="cannot be written"):
            prepare(tmp_path / "file" / f"x{suffix}", suffix)
    (tmp_path / "is.onnx").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(tmp_path / "is.onnx", ".onnx")
    prepare(tmp_path / "new" / "timm", "")
    assert list((tmp_path / "new").iterdir()) == []


# Serving


def serve(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where neither torch nor vit can be imported."""
    command = [sys.executable, "-c", BLOCKED, str(ROOT / "scripts" / "serve_onnx.py"), *args]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_labels_are_those_of_vit_predict(finished: Path, exported: Path, tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "in" / f"{i:02}.png", noise(20 + i, 24, seed=i))
    save(tmp_path / "in" / "deep" / "a.jpg", noise(300, 200), quality=90)
    (tmp_path / "in" / "notes.txt").write_text("x")
    args = (f"checkpoint={finished}", "images=in", "top=3", "output=p.csv")
    done = run("predict", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    served = serve(str(exported), "in", "--top", "3", cwd=tmp_path)
    assert (served.returncode, served.stderr) == (0, "")
    ours = {r["image"]: r for r in csv.DictReader(io.StringIO(served.stdout))}
    with open(tmp_path / "p.csv", newline="") as file:
        theirs = {row["image"]: row for row in csv.DictReader(file)}
    assert len(ours) == 13
    assert ours.keys() == theirs.keys()
    assert len({row["label"] for row in ours.values()}) > 1
    for name, row in ours.items():
        assert row.keys() == theirs[name].keys()
        for number in ("", "2", "3"):
            assert row[f"label{number}"] == theirs[name][f"label{number}"]
            both = (float(rows[name][f"probability{number}"]) for rows in (ours, theirs))
            assert np.diff([*both]) == pytest.approx(0, abs=2e-6)


def test_what_cannot_be_decoded_is_named(exported: Path, tmp_path: Path) -> None:
    save(tmp_path / "good.png", noise(9, 9))
    write(tmp_path / "bad.jpg", b"hello")
    args = (str(exported), "bad.jpg", "good.png", "no.png", "--json")
    served = serve(*args, cwd=tmp_path)
    assert served.returncode == 1
    assert [line.split(" cannot")[0] for line in served.stderr.splitlines()] == [
        "bad.jpg",
        "no.png",
    ]
    (line,) = map(json.loads, served.stdout.splitlines())
    assert line["image"] == "good.png"
    assert sum(p["probability"] for p in line["predictions"]) < 1 + 1e-5
    assert len(line["predictions"]) == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "{"), ("classes", "[1]"), ("classes", None), ("preprocessing", "{}"),
        ("preprocessing", '{"image_size": 8, "channels": 1, "center_crop": 1}'),
        ("preprocessing", '{"image_size": ["8", 8], "channels": 1, "center_crop": 1}'),
        ("preprocessing", '{"image_size": [8, 8], "channels": 1, "center_crop": "x"}'),
    ],
)  # fmt: skip
def test_what_is_no_export_is_told_in_a_line(
    exported: Path, tmp_path: Path, key: str, value: str | None
) -> None:
    model = onnx.load(exported)
    texts = {entry.key: entry.value for entry in model.metadata_props} | {key: value}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in texts.items() if v is not None})
    onnx.save(model, tmp_path / "other.onnx")
    save(tmp_path / "good.png", noise(9, 9))
    served = serve("other.onnx", "good.png", cwd=tmp_path)
    assert (served.returncode, served.stdout) == (2, "")
    assert served.stderr.startswith("other.onnx is no ONNX file of vit-export (")
    assert served.stderr.count("\n") == 1


def test_images_that_are_sent_are_answered_with_the_same_labels(
    exported: Path, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", noise(20, 24))
    (line,) = serve(str(exported), "a.png", "--json", cwd=tmp_path).stdout.splitlines()
    command = [sys.executable, str(ROOT / "scripts" / "serve_onnx.py"), str(exported), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline().startswith("serving until Ctrl-C; curl -F ")
        place = it.stdout.readline().split()[-1]

        def post(content: bytes, *, form: bool = False) -> tuple[int, dict[str, Any]]:
            sent = urllib.request.Request(place, content)
            if form:  # as curl -F file=@a.png sends it
                sent.add_header("Content-Type", "multipart/form-data; boundary=--x")
                about = b'Content-Disposition: form-data; name="file"; filename="a.png"'
                sent.data = b"----x\r\n" + about + b"\r\n\r\n" + content + b"\r\n----x--\r\n"
            try:
                with urllib.request.urlopen(sent, timeout=60) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        status, answer = post((tmp_path / "a.png").read_bytes())
        assert (status, answer["predictions"]) == (200, json.loads(line)["predictions"])
        status, answer = post((tmp_path / "a.png").read_bytes(), form=True)
        assert (status, answer["predictions"]) == (200, json.loads(line)["predictions"])
        status, answer = post(b"hello")
        assert status == 400
        assert "no image that can be decoded" in answer["error"]
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(place, timeout=60)
        it.send_signal(signal.SIGINT)
        assert it.wait(60) == 130
    for given in ((), ("a.png", "--port=0")):
        done = serve(str(exported), *given, cwd=tmp_path)
        assert done.returncode == 2
        assert "give images, or --port" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_fault(exported: Path, tmp_path: Path) -> None:
    for i in range(200):
        save(tmp_path / "in" / f"{i:03}.png", noise(9, 9, seed=i))
    command = [sys.executable, str(ROOT / "scripts" / "serve_onnx.py"), str(exported), "in"]
    with subprocess.Popen(
        [sys.executable, "-u", *command[1:]], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("image,label")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_resizing_gives_the_very_bytes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width, rows, columns = (int(side) for side in rng.integers(1, 90, 4))
        image = rng.integers(0, 256, (height, width, int(rng.choice([1, 3]))), dtype=np.uint8)
        ours = serve_onnx.resize(serve_onnx.resize(image, columns, 1), rows, 0)
        np.testing.assert_array_equal(ours, resize(image, rows, columns))


def kinds_of_images(folder: Path) -> list[Path]:
    """Images of every kind that a run reads."""
    made = [save(folder / f"{i}.jpg", noise(w, h, seed=i), quality=92)
            for i, (w, h) in enumerate([(640, 480), (97, 403), (24, 16), (1000, 70)])]  # fmt: skip
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        made.append(save(folder / f"t{turn}.jpg", noise(320, 200, seed=turn), exif=exif))
    exif[0x0112] = 6
    made.append(save(folder / "turned.png", noise(30, 50), exif=exif))
    clear = noise(40, 30).convert("RGBA")
    clear.putalpha(noise(40, 30, "L"))
    made += [save(folder / f"clear.{end}", clear) for end in ("png", "webp")]
    palette = stripes((255, 0, 0), (0, 0, 255)).quantize(4)
    made.append(save(folder / "palette.png", palette, transparency=0))
    deep = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50)
    made.append(save(folder / "deep.png", deep))
    made.append(save(folder / "gray.jpg", noise(50, 30, "L")))
    made.append(save(folder / "cmyk.jpg", noise(50, 30, "CMYK")))
    made.append(save(folder / "plain.bmp", noise(50, 30)))
    made.append(write(folder / "lying.png", encoded(noise(50, 30), "JPEG")))
    return made


@pytest.mark.parametrize(
    ("size", "keep", "channels"), [((16, 16), 1.0, 3), ((16, 24), 0.875, 3), ((14, 14), 0.875, 1)]
)
def test_images_are_prepared_as_a_run_prepares_them(
    size: tuple[int, int], keep: float, channels: int, tmp_path: Path
) -> None:
    transform = Transform(*size, channels, keep)
    about = {"image_size": list(size), "center_crop": keep, "channels": channels}
    for path in kinds_of_images(tmp_path):
        pixels = decode(str(path), channels, lambda h, w: transform.min_size(h, w, None))
        expected = transform.render(pixels).transpose(1, 2, 0)
        np.testing.assert_array_equal(serve_onnx.prepare(str(path), about), expected, str(path))
