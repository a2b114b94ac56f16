"""What a survey found, in lines of text and as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from vit.config.schema import DataConfig
from vit.data.reading.decode import decode
from vit.data.survey import Survey, as_image
from vit.data.task import task_of
from vit.data.types import DataSet
from vit.errors import shortened
from vit.report.gallery import within
from vit.report.render import rendered

_SETS, _ODD = 60, 24
"""Of duplicates and odd images, so many are shown."""
_EXAMPLES, _CLASSES = 5, 40
"""So many images of each of so many classes are shown."""
_SIDE = 96
_BUDGET = 8 * 2**20
_NAMED, _MEMBERS = 10, 4
"""So many sets, and of each so many images, are named in the text."""


def how_split(listed: DataSet, data: DataSet, config: DataConfig) -> list[str]:
    """Where each split of `data` comes from, given what was `listed`."""
    origin = {id(samples.names): split for split, samples in listed.splits.items()}
    by = "its group" if data.splits["train"].groups is not None else "its name"
    told = []
    for split, samples in data.splits.items():
        own = origin.get(id(samples.names))
        if own is not None:
            how = "as the data has it" + f", where it is {own}" * (own != split)
        elif split == "train":
            left_out = len(data.unused.get(split, ()))
            of_classes = f", less {left_out:,} by data.limit_per_class={config.limit_per_class}"
            how = "the rest" + of_classes * bool(left_out)
        else:
            share = f"data.{split}_fraction={getattr(config, f'{split}_fraction')}"
            if split == "test" and config.folds:
                share = f"data.fold={config.fold} of data.folds={config.folds}"
            how = f"cut off, each image by a hash of {by} ({share}, data.split_seed="
            how += f"{config.split_seed})"
        told.append(f"{split} {len(samples):,}: {how}")
    return told


def counts(survey: Survey) -> dict[str, list[int]]:
    """Of each class the number of images in each split, and of all."""
    classes, splits = survey.data.classes, survey.data.splits.values()
    table = np.stack(
        [task_of(own.labels).counts(own.labels, len(classes)) for own in splits], axis=1
    )
    rows = np.concatenate([table, table.sum(axis=1, keepdims=True)], axis=1).tolist()
    return dict(zip(classes, rows, strict=True))


def findings(survey: Survey, splits: Sequence[str], doubts: Sequence[str]) -> dict[str, list[str]]:
    """All but the classes, in lines under short headings; what there is nothing of has none."""
    sizes, odd = survey.sizes, survey.odd()
    (low, middle, high) = (sizes[at] for at in (0, len(sizes) // 2, -1))
    kinds = Counter(seen.kind for seen in survey.seen)
    looked = zip(survey.names, survey.seen, strict=True)
    damaged = [f"{name} ({seen.damage})" for name, seen in looked if seen.damage]
    found = {
        "splits": [*splits],
        "note": survey.data.notes,
        "sizes": [f"{low[0]}x{low[1]} to {high[0]}x{high[1]} px, median {middle[0]}x{middle[1]}"],
        "formats": [", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())],
        "odd": [
            f"{len(odd):,} very elongated or small: "
            + shortened([_sized(survey, i) for i in odd], _NAMED)
        ],
        "damaged": [f"{len(damaged):,} of {len(survey.seen):,}: {shortened(damaged, _NAMED)}"],
        "same": _told(survey, survey.same, "have the content of another", " = "),
        "alike": _told(survey, survey.alike, "look like another", " ~ "),
        "warning": [*doubts],
    }
    empty = {"odd": not odd, "damaged": not damaged}
    return {key: lines for key, lines in found.items() if lines and not empty.get(key)}


def _sized(survey: Survey, i: int) -> str:
    return f"{survey.names[i]} ({survey.seen[i].height}x{survey.seen[i].width})"


def _told(survey: Survey, sets: list[list[int]], what: str, sign: str) -> list[str]:
    if not sets:
        return []
    across, several = sum(map(survey.leaks, sets)), sum(map(survey.contradicts, sets))
    lines = [
        f"{sum(map(len, sets)):,} images {what}, in {len(sets):,} sets, {across:,} of them across "
        f"splits, {several:,} across classes"
    ]
    for images in sets[:_NAMED]:
        classes = [survey.classes_of(i) for i in images]
        several = survey.contradicts(images)
        shown = sign.join(
            f"{survey.splits[i]} {f'{name}: ' * several}{survey.names[i]}"
            for i, name in list(zip(images, classes, strict=True))[:_MEMBERS]
        )
        more = f" and {len(images) - _MEMBERS:,} more" if len(images) > _MEMBERS else ""
        lines.append(f"{f'{classes[0]}: ' * (not several)}{shown}{more}")
    return lines


def survey_page(title: str, survey: Survey, found: dict[str, list[str]], max_pixels: int) -> str:
    """The page: classes by split with examples, findings, and pictures of what is there twice."""
    examples = {name: _examples(survey, k) for k, name in enumerate(survey.data.classes[:_CLASSES])}
    sections: dict[str, tuple[str, list[list[int]]]] = {
        "same": ("The same content", survey.same[:_SETS]),
        "alike": ("Look the same", survey.alike[:_SETS]),
        "odd": ("Very elongated or small", [[i] for i in survey.odd()[:_ODD]]),
    }
    in_sets = chain.from_iterable(images for _, sets in sections.values() for images in sets)
    shown = dict.fromkeys([*in_sets, *chain.from_iterable(examples.values())])
    return rendered(
        "data.html",
        title=title,
        survey=survey,
        counts=counts(survey),
        found=found,
        sections=sections,
        examples=examples,
        pictures=within(_pictures(survey, shown, max_pixels), _BUDGET),
    )


def _examples(survey: Survey, label: int) -> list[int]:
    """Images of a class to be shown, evenly from all its training images that are not damaged."""
    own = [
        i
        for i, (split, known) in enumerate(zip(survey.splits, survey.labels, strict=True))
        if label in known and split == "train" and not survey.seen[i].damage
    ]
    return own[:: -(-len(own) // _EXAMPLES)] if own else []


def _pictures(
    survey: Survey, numbers: dict[int, None], max_pixels: int
) -> Iterator[tuple[int, np.ndarray]]:
    for i in numbers:
        source = survey.sources[i]
        if isinstance(source, np.ndarray):
            yield i, np.asarray(as_image(source).convert("RGB"))
        elif not survey.seen[i].damage:
            yield i, decode(source, 3, lambda height, width: (_SIDE, _SIDE), max_pixels)
