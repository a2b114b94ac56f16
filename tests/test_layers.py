"""The house: imports point down, siblings do not know one another, hydra stays at the door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vit.config import compose

PACKAGE = Path(__file__).resolve().parent.parent / "vit"
LEVEL = {
    "config": 0, "runtime": 1, "data": 2, "model": 2, "optim": 2, "artifacts": 2, "engine": 3,
    "cli": 4,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str) -> Iterator[str]:
    """Every imported module, wherever the import stands; under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(room: str, source: str) -> list[str]:
    """What a file in `room` imports, but may not."""
    bad = []
    for module in imports(source):
        parts = module.split(".")
        if parts[0] == "vit" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            if LEVEL[parts[1]] >= LEVEL[room]:
                bad.append(module)
        elif (
            (parts[0] in ("hydra", "omegaconf") and room != "cli")
            or (parts[0] == "torch" and room == "config")
            or (module.startswith("torch.distributed") and room != "runtime")
        ):
            bad.append(module)
    return bad


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0]
    if room in LEVEL:
        assert violations(room, file.read_text()) == []


def test_the_check_sees_violations() -> None:
    assert violations("model", "from vit.engine.step import train_step")
    assert violations("model", "def f():\n    import vit.data.loader")
    assert violations("engine", "import hydra")
    assert violations("config", "import torch")
    assert not violations("engine", "from vit.model.vit import VisionTransformer")


def test_every_room_is_known() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
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
    assert compose._SafeLoader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))


def test_every_module_says_what_it_is() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file
