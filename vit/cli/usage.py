"""`--help`: the YAML files with their comments, at once (neither torch nor Hydra is loaded)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

from vit.config import plugins
from vit.config.yaml_files import config_dir
from vit.errors import ConfigError

EXAMPLES = {
    "train": (
        ("vit-train", "handwritten digits, a small model: a good result within two minutes"),
        ("vit-train data=folder data.root=~/flowers", "a folder with one sub-folder per class"),
        ("vit-train data=cifar10 model=small model.patch_size=4 trainer.epochs=100", "CIFAR-10"),
        ("vit-train -m model.depth=2,4 optim.lr=1e-3,3e-3", "a sweep, and a table of what won"),
        ("vit-train resume=outputs/<run>", "go on exactly where it was killed"),
    ),
    "eval": (
        ("vit-eval outputs/<run>", "the best weights on the test set"),
        ("vit-eval outputs/<run> split=val tta=flip", "validation, also mirrored"),
        ("vit-eval outputs/<run> images=~/more", "another folder, the same classes"),
        (
            "vit-eval outputs/<run> data.image_size=384 corruptions=true",
            "larger images, and what noise, blur and other corruptions cost",
        ),
        ("vit-eval outputs/<run> outputs/<other>", "two models on the same images"),
    ),
    "predict": (
        ("vit-predict outputs/<run> ~/photos output=labels.csv", "a folder"),
        ("vit-predict outputs/<run> 'photos/**/*.jpg' top=1", "a pattern"),
        ("vit-predict outputs/<run> rose.jpg", "a file, the answer as CSV here"),
        ("vit-predict outputs/<run> photos output=all.jsonl", "as JSON lines"),
        ("vit-predict outputs/<run> photos sheet=sheet.png", "as a picture too"),
    ),
    "embed": (
        ("vit-embed outputs/<run> photos output=photos.npy", "embeddings of a folder"),
        ("vit-embed model.weights=dinov2.pth images=photos output=photos.parquet", "of weights"),
        ("vit-embed outputs/<run> photos knn=~/labelled page=near.html", "what each looks like"),
        ("vit-embed model.weights=dinov2.pth knn=~/labelled", "how well they tell classes apart"),
        (
            "vit-embed outputs/<run> knn=labels.csv page=near.html",
            "a table, each image among the others",
        ),
    ),
    "explain": (
        ("vit-explain outputs/<run> rose.jpg", "where the model looks"),
        ("vit-explain outputs/<run> photos limit=50", "the first 50 of a folder"),
        ("vit-explain outputs/<run> rose.jpg class=tulip", "why not a tulip?"),
        ("vit-explain outputs/<run> rose.jpg layers=true", "every head too"),
        ("vit-explain outputs/<run> photos methods=[rollout]", "one method"),
    ),
    "export": (
        ("vit-export outputs/<run>", "the best weights as ONNX"),
        ("vit-export outputs/<run> precision=int8", "smaller, and faster on CPUs"),
        ("vit-export outputs/<run> format=timm", "for timm and transformers"),
        ("vit-export outputs/<run> data.image_size=288", "for larger images"),
        (
            "vit-export outputs/<run> images=~/more output=flowers.onnx",
            "compared on another folder with the same classes, where the run's data is not",
        ),
    ),
}
FIRST = (
    "data", "data.root", "model", "augment", "trainer.epochs", "trainer.batch_size", "optim.lr",
    "name",
)  # fmt: skip
"""What a first run is told from the default one by."""
FIRST_RUN = "vit-train data=folder data.root=~/flowers model=small trainer.epochs=30 name=flowers"
NEXT = (
    (
        "faster",
        "fewer trainer.epochs, model=micro, a larger model.patch_size, a GPU",
    ),
    ("longer", "vit-train resume=outputs/<run> trainer.epochs=<in all>"),
)
"""What one wants to know after a first run."""
ABOUT = {
    "train": "Train a Vision Transformer.",
    "eval": "Evaluate a trained Vision Transformer: scores, predictions, a report.",
    "predict": "Label images with a trained Vision Transformer.",
    "embed": "Embed images, and find their neighbours among labelled ones.",
    "explain": "Show where in an image a trained Vision Transformer looks.",
    "export": "Write a trained Vision Transformer for other programs, and check what was written.",
    "data": "Look at a data set as a training would see it: splits, sizes, damage, duplicates.",
    "runs": "Compare training runs.",
}


def groups_in(*folders: Path) -> dict[str, dict[str, Path]]:
    """The config groups below `folders`, each with its options and their files."""
    found: dict[str, dict[str, Path]] = {}
    for group in (group for folder in folders for group in sorted(folder.iterdir())):
        if group.is_dir() and not group.name.startswith((".", "_")):
            files = (*group.glob("*.yaml"), *group.glob("*/*.yaml"))
            options = {
                f.relative_to(group).with_suffix("").as_posix(): f
                for f in files
                if not f.name.startswith("_")
            }
            if options:
                found[group.name] = dict(sorted({**found.get(group.name, {}), **options}.items()))
    return found


def usage(command: str, groups: Mapping[str, Mapping[str, Path]], topic: str = "") -> str:
    """The help text of `vit-<command>`, with the options of `groups`; or of one group or setting.

    Raises:
        ConfigError: there is no group and no setting `topic`.
    """
    configs = config_dir()
    top = (configs / f"{command}.yaml").read_text(encoding="utf-8")
    settings = top.split("\n\n", 1)[1].splitlines()  # behind the defaults list
    is_train = command == "train"
    listed = {
        group: _group(configs / group, options, _default(top, group))
        for group, options in groups.items()
        if is_train
    }
    known = [*settings, *(line for group in listed.values() for line in group)]
    if topic:
        wanted = topic.partition("=")[0]
        lines = listed.get(wanted) or _setting(known, wanted)
        if not lines:
            groups_are = f"; the groups are {', '.join(listed)}" if listed else ""
            raise ConfigError(f"--help {topic}: there is no such setting{groups_are}")
        return "\n".join(lines).rstrip() + "\n"
    takes = "[key=value ...] [--config-dir FOLDER] [-m]"
    lines = [
        ABOUT[command],
        "",
        f"usage: vit-{command} {takes if is_train else 'CHECKPOINT [IMAGES ...] [key=value ...]'}",
        "",
        "examples:",
        *(f"  {line}\n      {why}" for line, why in EXAMPLES[command]),
        "",
    ]
    if is_train:
        lines += ["  -m                   a sweep: every combination of comma-separated values"]
        lines += ["  --config-dir FOLDER  adds your own YAML files, laid out like the groups below"]
        lines += ["  --cfg job            print the composed settings instead of running"]
        lines += ["  import=FILE.py       makes parts of your own known (docs/plugins.md)"]
        lines += ["  --help NAME          one of the groups or settings below alone", ""]
        lines += ["what matters for a first run:", ""]
        for key in FIRST:
            line = f"{key}: {_default(top, key)}  # one of {', '.join(groups.get(key, ()))}"
            if key not in groups:
                line = next(line for line in known if line.strip().startswith(f"{key}: "))
            value, _, meaning = line.partition("#")
            lines.append(f"  {value.strip():<24}#{meaning}")
        lines += ["", f"  {FIRST_RUN}", ""]
        lines += [*(f"  {wish}: {how}" for wish, how in NEXT), ""]
    lines += ["settings (key: default  # meaning):", "", *(f"  {line}" for line in settings), ""]
    lines += [line for group in listed.values() for line in group]
    if found := [
        f"  {key}={name}  ({plugins.find(kind, name).source})"
        for kind, key in plugins.KINDS.items()
        for name in plugins.names(kind)
        if command == ("export" if kind == "export" else "train")
    ]:
        lines += ["plug-ins:", *found]
    return "\n".join(lines).rstrip() + "\n"


def _setting(known: Sequence[str], key: str) -> list[str]:
    """The line of one setting, with those that go on with what it means."""
    found: list[str] = []
    for line in known:
        if line.strip().startswith(f"{key}:") or (found and line.strip().startswith("#")):
            found.append(line)
        elif found:
            break
    return dedent("\n".join(found)).splitlines()


def _default(top: str, group: str) -> str:
    found = re.search(rf"^ *- {group}:(.*)", top, re.MULTILINE)
    return found[1].strip() if found else "null"


def _group(folder: Path, options: Mapping[str, Path], default: str) -> list[str]:
    lines = [f"{folder.name}=...  (default: {default})"]
    width = max(map(len, options))
    lines += [f"  {option:<{width}}  {_about(file)}" for option, file in options.items()]
    base = folder / "_base.yaml"
    source = base if base.is_file() else folder / f"{default}.yaml"
    if source.is_file():
        for line in source.read_text(encoding="utf-8").splitlines():
            if not line.startswith(("#", "defaults:")):
                prefix = f"{folder.name}." if line[:1].strip() else " " * (len(folder.name) + 1)
                lines.append(f"    {prefix}{line}")
    return [*lines, ""]


def _about(file: Path) -> str:
    """The first comment of a YAML file that is not a Hydra directive."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = (x[2:] for x in lines if x.startswith("# ") and "@package" not in x)
    return next(comments, "")
