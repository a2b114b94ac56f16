"""`vit-embed`: embeddings of images, and their neighbours among labelled ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli import front
from vit.cli.overrides import Overrides
from vit.config.checks import Check, Complaint
from vit.config.commands import EmbedConfig
from vit.config.validate import checked, to_config
from vit.data.sources.listing import list_images
from vit.data.sources.table_file import ENDINGS
from vit.errors import ConfigError, DataError
from vit.report.interval import wilson
from vit.runtime import console
from vit.runtime.files import prepare_file, to_csv_line, write_atomic
from vit.runtime.signals import import_torch

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vit.data.loader import EvalLoader
    from vit.data.types import DataSet
    from vit.inference.load import Trained
    from vit.report.neighbours import Neighbours

ON_PAGE = 60
"""Images that a page shows at most, evenly spread over all."""
_BUDGET = 12_000_000


def main() -> None:
    """Entry point of `vit-embed`."""
    sys.exit(front.run("embed", embed))


def _one_model(checkpoint: str | None, weights: str | None) -> Complaint:
    if (checkpoint is None) == (weights is None):
        yield "give one model: checkpoint=<run folder or file> or model.weights=<file or timm/...>"


def _there_is_something_to_do(images: Any, output: str | None, knn: str | None) -> Complaint:
    if images is None and knn is None:
        yield "give images=<files or a folder>, or knn=<labelled images>, or both"
    if images is None and output is not None:
        yield f"output={output} is for the embeddings of images=<files or a folder>; give these"
    if images is not None and output is knn is None:
        yield "give output=<file>.npy or .parquet for the embeddings, or knn=<labelled images>"


def _page_is_of_neighbours(page: str | None, knn: str | None) -> Complaint:
    if page is not None and knn is None:
        yield f"page={page} shows neighbours; give knn=<labelled images>"


CHECKS = [
    Check(("checkpoint", "model.weights"), _one_model),
    Check(("images", "output", "knn"), _there_is_something_to_do),
    Check(("page", "knn"), _page_is_of_neighbours),
]
"""Contradictions between the settings of `vit-embed`."""


@dataclass(frozen=True)
class Embedded:
    """Images that could be decoded: names, what reads them, embeddings float32 (N, D), which of the
    loader's images they are, and their classes, (N,): those that a user names have none, and 0.
    """

    names: list[str]
    loader: EvalLoader
    values: np.ndarray
    index: np.ndarray
    labels: np.ndarray


def embed(plain: dict[str, Any], overrides: Overrides) -> None:
    """Embed the images that the user names; with labelled ones find their neighbours."""
    config = checked(EmbedConfig, plain, CHECKS)
    paths = [] if config.images is None else list_images(config.images, console.warn)
    for key, file in (("output", config.output), ("page", config.page)):
        if file is not None:
            prepare_file(key, Path(file))
    if config.output is not None and config.output.endswith(".parquet"):
        _pyarrow()
    import_torch()  # here: an error in the settings or the paths is answered without it
    from vit.inference.load import load_trained
    from vit.inference.predict import unlabelled
    from vit.runtime.device import select_device

    device = select_device(config.device)
    if config.checkpoint is not None:
        place = Path(config.checkpoint).expanduser()
        trained = load_trained(place, device, console.warn, config.data.size)
    else:
        trained = _of_weights(str(config.model.weights), device, config.data.size)
    written: list[str] = []
    asked = _embedded(trained, unlabelled(paths), config) if paths else None
    known = None if config.knn is None else _labelled(config.knn)
    said: dict[str, list[Any]] = {}
    if known is not None:
        said = _with_neighbours(trained, known, asked, config, written)
    if config.output is not None and asked is not None:
        written += _write(Path(config.output), asked, said)
    count = 0 if asked is None else len(asked.names)
    about = f"{count:,} images embedded, {trained.model.config.dim} numbers each"
    console.say("\n  ".join([about] * (asked is not None) + written))


def _of_weights(place: str, device: torch.device, size: tuple[int, int] | None) -> Trained:
    """The model of weights as `model.weights` of a training takes them, without a head."""
    from vit.config.final import DataFacts, final_config
    from vit.config.validate import to_plain
    from vit.inference.load import Trained
    from vit.model.vit import VisionTransformer
    from vit.runtime.device import best_precision
    from vit.training.pretrained import describe
    from vit.training.weight_files import load_pretrained

    weights = load_pretrained(place)
    given = {} if size is None else {"data.image_size": [*size]}
    words = ["data=folder", "data.root=.", f"model.weights={place}"]
    words += [f"{key}={value}".replace(" ", "") for key, value in given.items()]
    settings = to_config(front.composed("train", words)[0], complete=False)
    facts = DataFacts(classes=2, train=1000, images=1000, side=None, shape=(224, 224))
    final = final_config(
        settings, given.keys(), weights.settings(settings, given.keys()), None, facts,
        precision=best_precision(device), gpu=False,
    )  # fmt: skip
    model = VisionTransformer(final.model)
    report = weights.into(model, [])
    console.say("\n".join(describe(weights, report, final.config)))
    data = final.config.data
    return Trained(
        model=model.to(device).eval(),
        classes=[],
        preprocessing={
            "image_size": list(final.model.image_size), "channels": final.model.channels,
            "mean": data.mean, "std": data.std, "aspect": data.aspect,
            "center_crop": data.center_crop,
        },
        evaluation={"batch_size": 64, "precision": final.config.trainer.precision},
        config=to_plain(final.config), step=0, path=Path(place), images=None,
    )  # fmt: skip


def _labelled(place: str) -> DataSet:
    """Images with one label each: a folder of classes or a table; with its own splits, if any.

    Raises:
        DataError: they are missing, or have several labels each.
    """
    from vit.data.sources.registry import load_data_set
    from vit.data.task import ONE_LABEL, task_of

    kind = "table" if place.lower().endswith(ENDINGS) else "folder"
    fractions = ["data.val_fraction=0", "data.test_fraction=0"]
    plain, _ = front.composed("train", [f"data={kind}", f"data.root={place}", *fractions])
    found = load_data_set(to_config(plain, complete=False).data)
    for note in found.notes:
        console.warn(note)
    if task_of(found.splits["train"].labels) is not ONE_LABEL:
        raise DataError(f"knn={place} has several labels for each image; give images with one")
    return found


def _embedded(trained: Trained, samples: Any, config: EmbedConfig, what: str = "") -> Embedded:
    """Embeddings of `samples`; damaged images are named."""
    from vit.inference.embedding import embed as embed_all
    from vit.inference.predict import open_samples

    loader = open_samples(trained, samples, config.data.workers, config.batch_size)
    with console.progress(total=len(samples), desc=f"embedding {what}".rstrip()) as bar:
        values, index = embed_all(trained, loader, bar.update)
    for line in console.damaged(loader.corrupt.named(), len(samples)):
        console.warn(line)
    if not len(index):
        raise DataError("no image is left to be embedded")
    names = [loader.names[i] for i in index]
    return Embedded(names, loader, values, index, samples.labels[index])


def _with_neighbours(
    trained: Trained, known: DataSet, asked: Embedded | None, config: EmbedConfig,
    written: list[str],
) -> dict[str, list[Any]]:  # fmt: skip
    """Columns of what neighbours say of the images that are asked for; `written` is told of what
    was measured and written.
    """
    from vit.report.neighbours import nearest

    bank = _embedded(trained, known.splits["train"], config, "what is labelled")
    split = next((name for name in ("test", "val") if name in known.splits), None)
    tests = None if split is None else _embedded(trained, known.splits[split], config, split)
    _tell_trained_on(trained, known, split)
    near = nearest(bank.values if tests is None else tests.values, bank.values, config.neighbours,
                   among_themselves=tests is None)  # fmt: skip
    written += _scores(bank, tests, near, len(known.classes))
    columns: dict[str, list[Any]] = {}
    if asked is not None:
        near = nearest(asked.values, bank.values, config.neighbours)
        labels, shares = near.vote(bank.labels, len(known.classes))
        columns = {
            "label": [known.classes[k] for k in labels],
            "share": [round(x, 6) for x in shares.tolist()],
            "neighbour": [bank.names[i] for i in near.index[:, 0]],
            "similarity": [round(x, 6) for x in near.similarity[:, 0].tolist()],
        }
    if config.page is not None:
        page = _page(trained, asked or tests or bank, bank, near, known.classes, asked is None)
        write_atomic(Path(config.page), page.encode("utf-8", "replace"))
        written.append(config.page)
    return columns


def _scores(
    bank: Embedded, tests: Embedded | None, near: Neighbours, classes: int
) -> Iterator[str]:
    """How often neighbours and a linear probe are right, of a split of its own, or of each image by
    the others.
    """
    import numpy as np

    from vit.report.neighbours import PARTS, probe

    truth = (tests or bank).labels
    said = {f"k-NN, {near.index.shape[1]} neighbours": near.vote(bank.labels, classes)[0]}
    if tests is not None or np.bincount(bank.labels).min() >= PARTS:
        said["linear probe"] = probe(
            bank.values, bank.labels, None if tests is None else tests.values
        )
    of = "images of a split of their own" if tests else "images, each by the others"
    for name, answers in said.items():
        right, count = int((answers == truth).sum()), len(truth)
        low, high = (100 * bound for bound in wilson(right, count))
        told = f"top-1 {100 * right / count:.2f} (95 % {low:.1f} to {high:.1f})"
        yield f"{name}: {told}, of {count:,} {of}"


def _tell_trained_on(trained: Trained, known: DataSet, split: str | None) -> None:
    """Warn of scores of images that the model was trained on."""
    from vit.artifacts.run_dir import RunDir
    from vit.data.manifest import known_among
    from vit.inference.load import read_manifest

    manifest = read_manifest(RunDir.of(trained.path), trained.images)
    samples = known.splits[split or "train"]
    count = 0 if manifest is None else int(known_among(samples, manifest.trained()).sum())
    if count:
        console.warn(
            f"{count:,} of the {len(samples):,} images were trained on by {trained.path}: scores "
            f"on them say little about new ones"
        )


def _write(output: Path, asked: Embedded, said: dict[str, list[Any]]) -> Iterator[str]:
    """Write the embeddings and what neighbours say; the files' paths."""
    columns = {"image": asked.names, **said}
    if output.suffix == ".parquet":
        arrow, parquet = _pyarrow()
        flat = arrow.array(asked.values.ravel())
        values = arrow.FixedSizeListArray.from_arrays(flat, asked.values.shape[1])
        with arrow.BufferOutputStream() as sink:
            table = arrow.table({**columns, "embedding": values})
            parquet.write_table(table, sink)
        write_atomic(output, memoryview(sink.getvalue()))
        yield str(output)
        return
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, asked.values)
    write_atomic(output, buffer.getbuffer())
    rows = zip(*columns.values(), strict=True)
    lines = [to_csv_line(list(map(str, row))) for row in (columns, *rows)]
    write_atomic(output.with_suffix(".csv"), b"".join(lines))
    yield from (str(output), f"{output.with_suffix('.csv')}: what each row is of")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "output=<file>.parquet needs pyarrow; pip install 'vit-train[parquet]', or give .npy"
        ) from None
    return pyarrow, pyarrow.parquet


def _page(
    trained: Trained, shown: Embedded, bank: Embedded, near: Neighbours, classes: Sequence[str],
    has_labels: bool,
) -> str:  # fmt: skip
    """Images, each beside its neighbours."""
    import numpy as np

    from vit.report.gallery import within
    from vit.report.render import rendered

    rows = np.linspace(0, len(shown.names) - 1, min(ON_PAGE, len(shown.names))).round().astype(int)
    others = list(dict.fromkeys(near.index[rows].ravel().tolist()))
    best, share = near.vote(bank.labels, len(classes))
    return rendered(
        "embed.html", title=f"Nearest images, by {trained.name}", names=shown.names,
        known=bank.names, classes=classes, rows=rows.tolist(), near=near.index.tolist(),
        similarity=near.similarity.tolist(), best=best.tolist(), share=share.tolist(),
        labels=shown.labels.tolist() if has_labels else None, known_labels=bank.labels.tolist(),
        pictures=within(_pictures(shown, rows.tolist()), _BUDGET // 4),
        known_pictures=within(_pictures(bank, others), _BUDGET),
    )  # fmt: skip


def _pictures(images: Embedded, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Rows and pictures uint8 (H, W, 3), as the model sees them."""
    from vit.inference.pictures import seen_at

    row_of = {int(images.index[row]): row for row in rows}
    for places, pictures, _, _ in seen_at(images.loader, list(row_of)):
        yield from ((row_of[at], own) for at, own in zip(places, pictures, strict=True))


if __name__ == "__main__":
    main()
