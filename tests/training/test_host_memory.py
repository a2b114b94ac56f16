"""What does not fit into the memory of the host is computed in parts, or refused in a line."""

import pytest
import torch
from small_models import small
from stepping import trainer, weights

from vit.errors import ConfigError
from vit.runtime.dist import World
from vit.training import host_memory
from vit.training.host_memory import BESIDES, EVALUATED, within_memory

SETTINGS = trainer(batch_size=24)
GIVEN = frozenset({"trainer.accumulate", "trainer.eval_batch_size"})


def room_for(images: float, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A model, and memory for a step of so many images of it."""
    model = small()
    weight = 4 * sum(p.numel() for p in model.parameters())
    one, two = (host_memory._bytes_kept(model, n, "fp32") for n in (1, 2))
    free = int(3 * weight + BESIDES * (one + (images - 1) * (two - one)))
    monkeypatch.setattr(host_memory, "available", lambda: free)
    return model


@pytest.mark.parametrize(("room", "parts"), [(64.5, 1), (24.5, 1), (12.5, 2), (7.5, 4), (1.5, 24)])
def test_a_batch_is_cut_into_as_few_parts_as_fit(room, parts, monkeypatch):
    model = room_for(room, monkeypatch)
    before = weights(model)
    found = within_memory(model, SETTINGS, frozenset(), World())
    assert (found.accumulate, found.batch_size) == (parts, 24)
    assert found.eval_batch_size == min(SETTINGS.eval_batch_size, EVALUATED * int(room))
    assert torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_numbers_that_were_given_stay_or_are_refused(monkeypatch):
    model = room_for(12.5, monkeypatch)
    more = trainer(batch_size=24, accumulate=6)
    assert within_memory(model, more, GIVEN, World()) == more
    with pytest.raises(ConfigError, match=r"accumulate=1 takes more .* try trainer.accumulate=2"):
        within_memory(model, SETTINGS, GIVEN, World())
    auto = trainer(batch_size=24, accumulate="auto")
    assert within_memory(model, auto, GIVEN, World()).accumulate == 2


def test_without_room_for_one_image_it_is_refused(monkeypatch):
    model = room_for(0.9, monkeypatch)
    with pytest.raises(ConfigError, match=r"single image; try a smaller data.image_size"):
        within_memory(model, SETTINGS, frozenset(), World())


def test_where_the_free_memory_is_not_known_nothing_changes(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: None)
    assert within_memory(small(), SETTINGS, frozenset(), World()) == SETTINGS


def test_processes_of_a_host_share_its_memory(monkeypatch):
    model = room_for(12.5, monkeypatch)
    several = World(size=2, local_size=2)
    monkeypatch.setattr(World, "all_gather_object", lambda self, value: [value, value])
    assert within_memory(model, SETTINGS, frozenset(), several).accumulate > 1  # of 12 images each


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_grows_by_the_image(precision):
    model = small(depth=2)
    kept = [host_memory._bytes_kept(model, n, precision) for n in (1, 2, 5)]
    assert kept[2] - kept[0] == pytest.approx(4 * (kept[1] - kept[0]), rel=0.1)
    deeper = small(depth=4)
    assert host_memory._bytes_kept(deeper, 2, precision) > 1.5 * kept[1]
