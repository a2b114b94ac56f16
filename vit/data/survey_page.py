"""What a survey found, in lines of text and as one self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from vit.config.schema import DataConfig
from vit.data.reading.decode import decode
from vit.data.survey import Seen, Sets, Survey, as_image, contradict, leak
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
    table = np.stack([survey.task.counts(own.labels, len(classes)) for own in splits], axis=1)
    rows = np.concatenate([table, table.sum(axis=1, keepdims=True)], axis=1).tolist()
    return dict(zip(classes, rows, strict=True))


def findings(survey: Survey, splits: list[str], doubts: list[str]) -> dict[str, list[str]]:
    """All but the classes, in lines under short headings; what there is nothing of has none."""
    low, middle, high = (survey.sizes[at] for at in (0, len(survey.sizes) // 2, -1))
    kinds = Counter(seen.kind for seen in survey.images).most_common()
    odd = [f"{seen.name} ({seen.height}x{seen.width})" for seen in survey.odd()]
    damaged = [f"{seen.name} ({seen.damage})" for seen in survey.images if seen.damage]
    total = len(survey.images)
    found = {
        "splits": splits,
        "note": survey.data.notes,
        "sizes": [f"{low[0]}x{low[1]} to {high[0]}x{high[1]} px, median {middle[0]}x{middle[1]}"],
        "formats": [", ".join(f"{kind} {count:,}" for kind, count in kinds)],
        "odd": [f"{len(odd):,} very elongated or small: {shortened(odd, _NAMED)}"] * bool(odd),
        "damaged": [f"{len(damaged):,} of {total:,}: {shortened(damaged, _NAMED)}"] * bool(damaged),
        "same": _told(survey, survey.same, "have the content of another", " = "),
        "alike": _told(survey, survey.alike, "look like another", " ~ "),
        "warning": doubts,
    }
    return {heading: lines for heading, lines in found.items() if lines}


def _told(survey: Survey, sets: Sets, what: str, sign: str) -> list[str]:
    if not sets:
        return []
    lines = [
        f"{sum(map(len, sets)):,} images {what}, in {len(sets):,} sets, {sum(map(leak, sets)):,} "
        f"of them across splits, {sum(map(contradict, sets)):,} across {survey.task.classes}"
    ]
    for images in sets[:_NAMED]:
        several = contradict(images)
        shown = sign.join(
            f"{seen.split} {f'{seen.title}: ' * several}{seen.name}" for seen in images[:_MEMBERS]
        )
        more = f" and {len(images) - _MEMBERS:,} more" if len(images) > _MEMBERS else ""
        title = "" if several else f"{images[0].title}: "
        lines.append(f"{title}{shown}{more}")
    return lines


def survey_page(title: str, survey: Survey, found: dict[str, list[str]], max_pixels: int) -> str:
    """The page: classes by split with examples, findings, and pictures of what is there twice."""
    own: dict[str, list[Seen]] = {name: [] for name in survey.data.classes[:_CLASSES]}
    for seen in survey.images:
        for name in seen.classes if seen.split == "train" and not seen.damage else ():
            if name in own:
                own[name].append(seen)
    examples = {name: own[:: -(-len(own) // _EXAMPLES) or 1] for name, own in own.items()}
    sections: dict[str, tuple[str, Sets]] = {
        "same": ("The same content", survey.same[:_SETS]),
        "alike": ("Look the same", survey.alike[:_SETS]),
        "odd": ("Very elongated or small", [[seen] for seen in survey.odd()[:_ODD]]),
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
        contradict=contradict,
        leak=leak,
        pictures=within(_pictures(shown, max_pixels), _BUDGET),
    )


def _pictures(shown: Iterable[Seen], max_pixels: int) -> Iterator[tuple[int, np.ndarray]]:
    for seen in shown:
        if isinstance(seen.source, np.ndarray):
            yield seen.number, np.asarray(as_image(seen.source).convert("RGB"))
        elif not seen.damage:
            pixels = decode(seen.source, 3, lambda height, width: (_SIDE, _SIDE), max_pixels)
            yield seen.number, pixels
