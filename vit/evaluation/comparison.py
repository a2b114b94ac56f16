"""Two models compared: whether they can be, and on what."""

from __future__ import annotations

from vit.data.task import SEVERAL_LABELS
from vit.data.types import Samples
from vit.errors import DataError
from vit.evaluation.review import label_scores
from vit.inference.evaluator import Evaluator
from vit.inference.load import Trained
from vit.inference.predict import Predictions
from vit.report.comparison import Comparison


def compare(models: tuple[Trained, Trained], ours: Predictions, theirs: Predictions) -> Comparison:
    """Two models by their predictions; they are called by their runs, where these differ.

    Raises:
        DataError: not the same images turned out damaged.
    """
    first, second = models
    if ours.index.tolist() != theirs.index.tolist():
        raise DataError(
            f"checkpoint: not the same images can be decoded for {first.path} and for "
            f"{second.path}; repair or remove the damaged ones"
        )
    names = first.name, second.name
    predicted = ours.top[:, 0], theirs.top[:, 0]
    found = None
    if ours.task is SEVERAL_LABELS:
        found = label_scores(first, ours), label_scores(second, theirs)
        predicted = found[0].given, found[1].given
    return Comparison(
        names=names if names[0] != names[1] else (str(first.path), str(second.path)),
        labels=ours.labels,
        predicted=predicted,
        losses=(ours.losses, theirs.losses),
        label_scores=found,
    )


def check_comparable(one: Evaluator, other: Evaluator, samples: Samples) -> None:
    """Whether a second model can be compared with the first one, on what that is evaluated on.

    Raises:
        DataError: it knows other classes, or its split holds other images.
    """
    first, second = one.trained, other.trained
    if first.classes != second.classes:
        differ = sorted(set(first.classes) ^ set(second.classes))
        which = f"{', '.join(differ[:5])}{', ...' * (len(differ) > 5)}" if differ else "the order"
        raise DataError(
            f"checkpoint: {second.path} knows other classes than {first.path} (not in both: "
            f"{which}); compare models of the same classes"
        )
    theirs, what = other.find(one.config.split)
    if list(theirs.names) != list(samples.names) or (theirs.labels != samples.labels).any():
        raise DataError(
            f"checkpoint: {what} of {second.path} holds other images than that of {first.path}; "
            f"compare them on images=<folder> that neither has seen"
        )
