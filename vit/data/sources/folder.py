"""A folder of images with one sub-folder per class, with or without named splits.

ImageNet (Russakovsky et al. 2015), or any part of it, is one whose folders are named by synset.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vit.config.schema import DataConfig
from vit.data.sources import layout
from vit.data.sources.layout import SPLITS, split_of
from vit.data.sources.listing import counted, no_image
from vit.data.sources.scan import list_folder, read_errors, scan, sub_folders
from vit.data.types import DataSet, FileImages, Samples
from vit.errors import DataError, shortened

Naming = Callable[[list[str]], list[str]]
"""From the class folders, sorted, to the names of their classes."""


def synset_names(synsets: list[str]) -> list[str]:
    """The first name of each synset (`n01440764`: tench), with the synset where two share one.

    Folders that are no synsets keep their names.
    """
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    names = [
        info.label_name_to_description(synset).split(",")[0] if synset in known else synset
        for synset in synsets
    ]
    count = Counter(names)
    return [
        f"{name} ({synset})" if count[name] > 1 else name
        for name, synset in zip(names, synsets, strict=True)
    ]


NAMINGS: dict[str, Naming] = {"imagenet": synset_names}
"""How sources name their classes, where not as the folders."""


def load(config: DataConfig) -> DataSet:
    """List `data.root`: `<root>/<class>/...` or `<root>/{train,val,test}/<class>/...`.

    Raises:
        DataError: the folder is missing, has no class, a class without images to train on, or
            splits that disagree.
    """
    assert config.root is not None
    root, naming = Path(config.root), NAMINGS.get(config.name, list)
    with read_errors():
        layout.check_folder("data.root", root)
        folders = split_folders(root) or {"train": ""}
        train = root / folders["train"]
        named = sorted(sub_folders(train))
        if len(named) < 2:
            what = layout.too_few(train, named)
            raise DataError(f"{train} has {len(named)} class folders; {what}")
        classes = naming(named)
        listed = _Listing(classes, naming)
        if folders["train"]:
            listed.note_loose(root)
        splits = {split: listed.samples(root, name, split) for split, name in folders.items()}
    return DataSet(classes, splits, notes=listed.notes())


def load_flat(root: Path, classes: list[str], source: str) -> DataSet:
    """Every image below `root`, which has sub-folders for `classes` and no others: split `images`.

    Args:
        classes: their names, as the data set `source` (a key of SOURCES) gives them.

    Raises:
        DataError: the folder is missing, or its classes are others.
    """
    with read_errors():
        layout.check_folder("images", root)
        listed = _Listing(classes, NAMINGS.get(source, list))
        samples = listed.samples(root)
    return DataSet(classes, {"images": samples}, notes=listed.notes())


def split_folders(root: Path) -> dict[str, str]:
    """The folder of each split; none where the folders of `root` are classes.

    They are splits where the one for training has folders itself, or where all are called so.

    Raises:
        DataError: there is none for training, there are two for one split, or other images beside.
    """
    found = sorted(sub_folders(root))
    named = {split: [f for f in found if split_of(f) == split] for split in SPLITS}
    others = [folder for folder in found if split_of(folder) is None]
    if not any(sub_folders(root / folder) for folder in named["train"]) and (others or not found):
        return {}
    if not named["train"]:
        raise DataError(f"data.root={root} has {shortened(found)} but no train folder; add it")
    for split, folders in named.items():
        if len(folders) > 1:
            raise DataError(
                f"data.root={root} has {folders[0]} and {folders[1]}, which are both called "
                f"{split}; keep one of them"
            )
    filled = [folder for folder, below in scan(root, others).items() if below.files]
    if filled:
        raise DataError(
            f"data.root={root} has a train folder with classes, and {shortened(filled)} beside it "
            f"holds images but is no split; call it val or test, or move it away (or rename "
            f"{named['train'][0]}, if that is a class)"
        )
    return {split: folders[0] for split, folders in named.items() if folders}


@dataclass(frozen=True)
class _Listing:
    """Lists the splits of a data set, and notes what is worth a line.

    Attributes:
        classes: the names of all classes.
        naming: how they come from folders.
    """

    classes: list[str]
    naming: Naming
    _left_out: Counter[str] = field(default_factory=Counter)
    _empty: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What was left out, and the classes without images."""
        left_out = [counted(self._left_out)] if self._left_out else []
        return left_out + ([f"{'; '.join(self._empty)}: support 0"] if self._empty else [])

    def note_loose(self, folder: Path) -> None:
        """Note the files that lie beside the folders of classes or splits."""
        _, _, images, left_out = list_folder(folder)
        self._left_out.update(left_out)
        if images:
            self._left_out[f"images directly in {folder} (they have no class)"] += len(images)

    def samples(self, place: Path, prefix: str = "", split: str = "images") -> Samples:
        """All image files below `place/prefix/<class folder>`, by class and then by path."""
        root = place / prefix
        folders = sorted(sub_folders(root))
        labels = self._labels(root, folders, alone=not prefix)
        self.note_loose(root)
        below = scan(root, folders)
        filled = [folder for folder in folders if below[folder].files]
        for folder in folders:
            self._left_out.update(below[folder].left_out)
            if split == "train" and not below[folder].files:
                what = no_image(f"class folder {root / folder}", below[folder].left_out)
                hint = "" if prefix else layout.deeper("data.root", root, filled)
                raise DataError("; ".join(filter(None, [what, "fill or remove it", hint])))
        counts = [len(below[folder].files) for folder in folders]
        if not filled:
            raise DataError(f"{no_image(root, self._left_out)}: fill or remove it")
        there = {label for label, count in zip(labels, counts, strict=True) if count}
        empty = [name for label, name in enumerate(self.classes) if label not in there]
        if empty:
            self._empty.append(f"{prefix or root} has no image of {shortened(empty)}")
        names = [os.path.join(prefix, name) for folder in folders for name in below[folder].files]
        images = FileImages(str(place).rstrip(os.sep) or os.sep, names)
        numbers = np.repeat(np.array(labels, np.int64), counts)
        return Samples(numbers, names, images, np.arange(len(names)))

    def _labels(self, root: Path, folders: list[str], *, alone: bool) -> list[int]:
        """The class of each folder."""
        if not folders:
            raise DataError(layout.unlabelled(root))
        numbers = {name: number for number, name in enumerate(self.classes)}
        # A readable name that two classes share has its folder behind it.
        found = [
            name if name in numbers or name == folder else f"{name} ({folder})"
            for name, folder in zip(self.naming(folders), folders, strict=True)
        ]
        extra = [f for f, name in zip(folders, found, strict=True) if name not in numbers]
        if extra:
            missing = sorted(set(self.classes) - set(found))
            hint = layout.deeper("images", root, folders) if alone else ""
            raise DataError(
                f"{root} does not have the expected class folders: missing "
                f"{shortened(missing) or '-'}, not expected {shortened(extra)}; expected "
                f"{shortened(self.classes)}{hint and '; ' + hint}"
            )
        return [numbers[name] for name in found]
