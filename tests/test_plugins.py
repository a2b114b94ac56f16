"""Parts from outside of the package: the example of docs/plugins.md, installed and used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import SMALL, lines, run
from PIL import Image
from torch import nn
from warm import Warm

from vit.artifacts import checkpoint
from vit.cli import front
from vit.config import plugins
from vit.config.model import ViTConfig
from vit.config.validate import to_config
from vit.errors import ConfigError
from vit.inference import explain
from vit.model.attention import SCORES, Dot
from vit.model.layers import MLPS, NORMS
from vit.model.pooling import MeanPool
from vit.model.vit import VisionTransformer
from vit.model.weights import timm_kwargs
from vit.optim.schedule import lr_at

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "plugins.md").read_text()
USED = ["data=shapes", "optim=sgd", "optim.lr=0.05", "model.positions=waves", *SMALL]


def of_page(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return str(found)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "vit_shapes.py"
    path.write_text(of_page("python"))
    return path


@pytest.fixture(scope="module")
def installed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The commands where the example is installed as a package."""
    package, site = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    (package / "vit_shapes.py").write_text(file.read_text())
    (package / "pyproject.toml").write_text(of_page("toml"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    where = ["--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run([*pip, *where], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        warm = Warm()
        warm.run("train", "--version", cwd=site)  # which starts it
    yield warm
    warm.close()


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test makes known is not known to the next."""
    yield
    plugins._files.clear()


def loaded(path: Path) -> dict[str, Any]:
    """A checkpoint whose plug-ins are not here."""
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def ok(done: CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_trains_sweeps_resumes_and_is_used(installed: Warm, tmp_path: Path) -> None:
    help = ok(installed.run("train", "--help", cwd=tmp_path))
    assert "model.positions=waves  (vit-shapes 0.1)" in help
    own = ["data.options.count=120", "optim.options.nesterov=false"]
    short = [*USED, *own, "trainer.steps=4", "trainer.save_every=2", "name=a"]
    ok(installed.run("train", *short, cwd=tmp_path))
    newest = tmp_path / "outputs/a/checkpoints/step-000000004.pt"
    content = loaded(newest)
    assert content["config"]["optim"]["options"] == {"nesterov": False, "dampening": 0.0}
    assert content["config"]["data"]["options"] == {"count": 120, "side": 16}
    assert content["config"]["data"]["image_size"] == 16  # as the pixels are
    assert content["plugins"]["model.positions=waves"] == "vit-shapes 0.1"

    newest.unlink()
    ok(installed.run("train", "resume=outputs/a", cwd=tmp_path))
    again = loaded(newest)["weights"]
    assert all(torch.equal(value, again[name]) for name, value in content["weights"].items())

    sweep = ["-m", *USED, "optim=sgd,adamw", "optim.lr=0.01", "trainer.steps=2", "name=s"]
    told = ok(installed.run("train", *sweep, cwd=tmp_path))
    assert {p.name for p in (tmp_path / "outputs/s").glob("optim-*")} == {
        "optim-sgd",
        "optim-adamw",
    }
    assert "failed" not in told
    ok(installed.run("eval", "checkpoint=outputs/a", cwd=tmp_path))
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    answer = ok(installed.run("predict", "checkpoint=outputs/a", "images=photo.png", cwd=tmp_path))
    assert "circle" in answer
    ok(installed.run("export", "checkpoint=outputs/a", "format=torch", cwd=tmp_path))
    assert (tmp_path / "outputs/a/export/model.pt2").is_file()

    # and without the package, one line each
    for command, args, named in (
        ("train", ["data=shapes"], "data=shapes"),
        ("eval", ["checkpoint=outputs/a"], "model.positions=waves of vit-shapes 0.1"),
        ("predict", ["checkpoint=outputs/a", "images=photo.png"], "waves of vit-shapes 0.1"),
    ):
        done = run(command, *args, cwd=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode in (2, 3)
        assert named in line
        assert "import=" in line
    done = run("train", "resume=outputs/a", "trainer.steps=8", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all("import=" in line for line in done.stderr.splitlines())


def test_a_file_serves_every_command_and_process(file: Path, tmp_path: Path) -> None:
    there = f"import={file}"
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    jobs = ["-m", *USED, "data.options.count=60,120", "trainer.steps=2", "name=s", *joblib]
    ok(run("train", there, *jobs, cwd=tmp_path))
    assert len(list((tmp_path / "outputs/s").glob("*/summary.json"))) == 2
    ok(
        run(
            "eval",
            f"checkpoint={next((tmp_path / 'outputs/s').glob('data*'))}",
            there,
            cwd=tmp_path,
        )
    )
    assert "import" not in next((tmp_path / "outputs/s").glob("*/config.yaml")).read_text()


def test_what_a_file_lacks_is_one_line(tmp_path: Path) -> None:
    broken = {
        "none.py": ("x = 1", "has no dictionary PLUGINS"),
        "group.py": ('PLUGINS = {"vit.optimizer": {"a": 1}}', "vit.optimizer is no group"),
        "syntax.py": ("def", "invalid syntax"),
        "fails.py": ('import nothing\nPLUGINS = {"vit.optim": {"a": 1}}', "fails.py:1"),
    }
    for name, (text, words) in broken.items():
        (tmp_path / name).write_text(text)
        done = run("train", f"import={name}", "optim=a", "optim.lr=1", cwd=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert words in line
    assert "No such file" in run("train", "import=gone.py", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("optim.options.nesterof=true", "did you mean optim.options.nesterov?"),
        ("optim.options.nesterov=3", "optim.options.nesterov=3 must be true or false"),
        ("optim.options=3", "optim.options=3 must be"),
        ("model.options.positions.base=3", "of waves: leave it out"),
        ("model.options.place.base=3", "model.options.place is no known key"),
        ("schedule.options.x=3", "of cosine: leave it out"),
    ],
)
def test_settings_of_a_plug_in_are_checked(
    given: str, words: str, file: Path, forgotten: None
) -> None:
    plain, _ = front.composed("train", [f"import={file}", *USED, given])
    with pytest.raises(ConfigError, match=re.escape(words)):
        to_config(plain)


def test_no_yaml_and_no_checkpoint_imports_anything(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "open('ran', 'w').close()\nPLUGINS = {'vit.optim': {'evil': 1}}"
    )
    called = "{_target_: evil.run}"
    for name, text in (
        ("key", "import: evil.py\noptim: {name: evil}"),
        ("callback", f"hydra: {{callbacks: {{a: {called}}}}}"),
        ("logging", "hydra: {job_logging: {handlers: {a: {class: evil.Handler}}}}"),
        ("deep", f"search: {{space: [[{called}]]}}"),
    ):
        own = tmp_path / name / "experiment"
        own.mkdir(parents=True)
        (own / "x.yaml").write_text(f"# @package _global_\n{text}\n")
        done = run("train", "--config-dir", name, "experiment=x", "trainer.steps=1", cwd=tmp_path)
        assert done.returncode == 2, name
        assert "import" in done.stderr
    ok(run("train", *SMALL, "trainer.steps=1", "name=a", cwd=tmp_path))
    config = tmp_path / "outputs/a/config.yaml"
    config.write_text(f"import: evil.py\n{config.read_text()}")
    for file in (tmp_path / "outputs/a/checkpoints").glob("*.pt"):
        content = checkpoint.load(file)
        content["config"]["import"] = content["spec"]["import"] = "evil.py"
        content["config"]["optim"]["name"] = "evil"
        content["plugins"] = {"optim.name=evil": "evil.py"}
        checkpoint.save(file, {k: v for k, v in content.items() if k != "format_version"})
    for command, args in (
        ("train", ["resume=outputs/a", "trainer.steps=2"]), ("eval", ["checkpoint=outputs/a"]),
    ):  # fmt: skip
        assert run(command, *args, cwd=tmp_path).returncode in (2, 3)
    assert not (tmp_path / "ran").exists()


@dataclass(frozen=True)
class Sharp:
    factor: float = 2.0
    names: list[str] = field(default_factory=list)


class SharpDot(Dot):
    def __init__(self, heads: int, width: int, place: int = 0, *, options: Sharp) -> None:
        super().__init__(heads, width, place)
        self.scale *= options.factor


class Rescale(nn.Module):
    def __init__(self, width: int, eps: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


PARTS: dict[tuple[str, str], Any] = {
    ("attention", "sharp"): SharpDot,
    ("norm", "rescale"): Rescale,
    ("mlp", "linear"): lambda dim, hidden, dropout: nn.Linear(dim, dim),
    ("pool", "middle"): lambda config: MeanPool(),
    ("schedule", "cubed"): lambda progress: (1 - progress) ** 3,
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {key: plugins.Plugin("here", lambda key=key: PARTS[key]) for key in PARTS}
    monkeypatch.setattr(plugins, "find", lambda kind, name: found[kind, name])
    monkeypatch.setattr(plugins, "names", lambda of: [name for kind, name in found if kind == of])


def test_every_part_of_a_model_can_be_of_a_plug_in(parts: None) -> None:
    of = {"attention": "sharp", "norm": "rescale", "mlp": "linear", "pool": "middle"}
    config = ViTConfig(
        image_size=(8, 8), patch_size=4, dim=8, depth=2, heads=2, num_classes=3,
        options={"attention": {"factor": 3.0}}, **of,
    )  # fmt: skip
    assert not {of["attention"] in SCORES, of["norm"] in NORMS, of["mlp"] in MLPS} - {False}
    model = VisionTransformer(ViTConfig(**json.loads(json.dumps(config.plain())))).eval()
    assert [block.attn.score.scale for block in model.blocks] == 2 * [3 * Dot(2, 4).scale]
    images = torch.randn(2, 3, 8, 8)
    assert model(images).shape == (2, 3)
    assert explain.relevance(model, images, torch.tensor([0, 2])).isfinite().all()
    with pytest.raises(ValueError, match="norm=rescale"):
        timm_kwargs(ViTConfig(norm="rescale", pool="mean"))


def test_a_schedule_can_be_of_a_plug_in(parts: None) -> None:
    shape = SimpleNamespace(name="cubed", final=0.0, options={})
    config = SimpleNamespace(optim=SimpleNamespace(lr=8.0), schedule=shape)
    assert lr_at(config, SimpleNamespace(steps=10, warmup=0), 5) == 1.0  # type: ignore[arg-type]


def test_a_tracker_is_told_each_line_once(tmp_path: Path) -> None:
    """Also where the run is killed behind its last checkpoint, and goes on."""
    (tmp_path / "notes.py").write_text(
        "import json\n"
        "class Notes:\n"
        "    def __init__(self, folder, settings):\n"
        "        self.file = folder / 'told.jsonl'\n"
        "        self.file.touch()\n"
        "        self.lines = len(self.file.read_text().splitlines())\n"
        "    def log(self, line):\n"
        "        with self.file.open('a') as file: file.write(json.dumps(line) + '\\n')\n"
        "    def image(self, tag, picture, step):\n"
        "        assert picture.dtype == 'uint8' and picture.shape[2] == 3\n"
        "    def close(self): pass\n"
        "PLUGINS = {'vit.tracker': {'notes': Notes}}\n"
    )
    steps = ["trainer.steps=12", "trainer.log_every=1", "trainer.save_every=4", "name=a"]
    there = ["import=notes.py", "tracker=notes"]
    ok(run("train", *there, *SMALL, *steps, cwd=tmp_path))
    run_folder = tmp_path / "outputs/a"

    def numbers(path: Path) -> list[dict[str, Any]]:
        varying = ("time", "seconds", "images_per_second", "mfu", "data_share")
        return [{k: v for k, v in line.items() if k not in varying} for line in lines(path)]

    whole = numbers(run_folder / "metrics.jsonl")
    assert numbers(run_folder / "told.jsonl") == whole
    (run_folder / "checkpoints" / "step-000000012.pt").unlink()  # as where it was killed before
    ok(run("train", "import=notes.py", "resume=outputs/a", cwd=tmp_path))
    assert numbers(run_folder / "told.jsonl") == numbers(run_folder / "metrics.jsonl") == whole
