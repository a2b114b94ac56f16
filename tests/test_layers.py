"""The house: imports point down, siblings do not know one another, hydra stays at the door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vit.config import yaml_files

PACKAGE = Path(__file__).resolve().parent.parent / "vit"
LEVEL = {
    room: level
    for level, rooms in enumerate((
        ("errors",),
        ("report",),
        ("config",),
        ("runtime",),
        ("data", "model", "optim", "artifacts"),
        ("inference",),
        ("training", "evaluation", "export"),
        ("cli",),
        ("api", "__main__"),
    ))
    for room in rooms
}  # fmt: skip
PARTS = ("vit.data.sources", "vit.data.reading", "vit.data.augment")
"""Rooms within a room: none of them imports another, and only the rest of `data` imports them."""
NO_TORCH = ("errors", "report", "config")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str) -> Iterator[str]:
    """Every imported module, wherever the import stands; under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(file: str, source: str) -> list[str]:
    """What `file`, a module's name without `vit.`, imports, but may not."""
    bad = []
    room = file.split(".")[0]
    own = next((part for part in PARTS if f"vit.{file}".startswith(f"{part}.")), None)
    for module in imports(source):
        parts = module.split(".")
        if parts[0] == "vit" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            if LEVEL[parts[1]] >= LEVEL[room]:
                bad.append(module)
        elif (
            (own and module.startswith(tuple(f"{part}." for part in PARTS if part != own)))
            or (parts[0] in ("hydra", "omegaconf") and room != "cli")
            or (parts[0] == "torch" and room in NO_TORCH)
            or (module.startswith("torch.distributed") and room != "runtime")
        ):
            bad.append(module)
    return bad


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    if name != "__init__":  # the Python door, which imports lazily
        assert violations(name, file.read_text()) == []


def test_the_check_sees_violations() -> None:
    assert violations("model.vit", "from vit.training.step import train_step")
    assert violations("model.vit", "def f():\n    import vit.data.loader")
    assert violations("report.page", "from vit.config.schema import RunConfig")
    assert violations("errors", "from vit.report.page import Report")
    assert violations("training.step", "import hydra")
    assert violations("training.step", "from vit.export.parity import compare")
    assert violations("config.rules", "import torch")
    assert violations("data.reading.cache", "from vit.data.sources.scan import scan")
    assert violations("data.augment.batch", "from vit.data.reading import transform")
    assert not violations("training.step", "from vit.model.vit import VisionTransformer")
    assert not violations("data.loader", "from vit.data.reading.reader import Reader")
    assert not violations("data.sources.folder", "from vit.data.sources.scan import scan")


def test_every_room_is_known() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms == set(LEVEL)


def test_nothing_can_execute_what_it_loads() -> None:
    """One torch.load, with weights_only; no pickle, eval or instantiate anywhere."""
    loads = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "instantiate"), file
                assert name != "yaml.load" or ast.unparse(node.args[1]) == "_SafeLoader", file
                assert not name.endswith((".instantiate", ".unsafe_load")), file
                if name == "torch.load":
                    loads.append(ast.unparse(node))
        assert "pickle" not in {m.split(".")[0] for m in imports(file.read_text())}, file
    assert len(loads) == 1
    assert "weights_only=True" in loads[0]
    assert yaml_files._SafeLoader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))


def test_no_image_is_asked_for_a_protocol() -> None:
    """`isinstance` of a runtime protocol takes as long as decoding a small JPEG."""
    assert not [file for file in FILES if "runtime_checkable" in file.read_text()]


def test_every_module_says_what_it_is() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file
