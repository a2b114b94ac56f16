"""ImageNet (Russakovsky et al. 2015), or any part of it: folders named by synset."""

from __future__ import annotations

from collections import Counter

from vit.config.schema import DataConfig
from vit.data.sources import folder
from vit.data.types import DataSet


def load(config: DataConfig) -> DataSet:
    """List `<root>/{train,val}/<synset>/...`; see `folder.load`."""
    return folder.load(config, readable)


def readable(synsets: list[str]) -> list[str]:
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
