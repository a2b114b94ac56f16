"""Image files without labels, seen as a run's evaluation sees its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit.data.cache import MadeSmall, Recipe
from vit.data.decode import Kept
from vit.data.images import FileImages
from vit.data.types import Samples


class PathImages(FileImages):
    """Images in files that are named by their paths.

    Args:
        paths: of the files.
        recipe: how the run keeps its images; None: it does not.
    """

    def __init__(self, paths: Sequence[str], recipe: Recipe | None) -> None:
        super().__init__("", paths)
        self.recipe = recipe

    def path(self, index: int) -> str:
        """The file of image `index`."""
        return self.names[index]

    def source(self, index: int) -> str | Kept:
        """Where image `index` is read from."""
        path = self.names[index]
        return path if self.recipe is None else MadeSmall(path, self.recipe)


def unlabelled(paths: Sequence[str], recipe: Recipe | None = None) -> Samples:
    """The images of `paths`, all of class 0; see `PathImages`."""
    count = len(paths)
    return Samples(np.zeros(count, np.int64), paths, PathImages(paths, recipe), np.arange(count))
