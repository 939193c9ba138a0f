import threading
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune import images
from edgeprune.data import batches, views
from edgeprune.data.batches import VIEWS, Batches
from edgeprune.data.pixels import Pixels
from edgeprune.errors import DataError, UsageError
from edgeprune.images import Preprocess

PRE = Preprocess((12, 16), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def some(count: int = 10, labels: bool = True) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (count, 12, 16, 3), dtype=torch.uint8, generator=generator)
    return Pixels(rows, torch.arange(count) % 3 if labels else None, [str(i) for i in range(count)])


def same(a: batches.RawBatch, b: batches.RawBatch) -> bool:
    return torch.equal(a.index, b.index) and all(torch.equal(a.views[k], b.views[k]) for k in a.views)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = (Batches(some(), PRE, 4, VIEWS, seed=3) for _ in range(2))
    in_order = [first.at(step) for step in range(8)]
    for step in (7, 0, 5, 5, 6, 1):
        assert same(second.at(step), in_order[step])
    assert not same(Batches(some(), PRE, 4, VIEWS, seed=4).at(0), in_order[0])
    assert not torch.equal(in_order[0].views["train"], in_order[5].views["train"])


@pytest.mark.parametrize("ahead", [2, 5])
def test_any_number_made_ahead_makes_the_same_batches(ahead: int) -> None:
    alone, many = (Batches(some(10), PRE, 4, VIEWS, seed=3, ahead=n) for n in (1, ahead))
    for step in (0, 1, 2, 3, 9, 10, 4, 5):
        assert same(many.at(step), alone.at(step))
        assert sorted(many._next) == list(range(step + 1, step + 1 + ahead))
    for made in (alone, many):
        made.close()


def test_a_view_does_not_depend_on_the_others() -> None:
    both = Batches(some(), PRE, 4, ("strong", "weak")).at(2)
    assert torch.equal(Batches(some(), PRE, 4, ("weak",)).at(2).views["weak"], both.views["weak"])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 17), st.integers(1, 23))
def test_every_image_once_before_any_twice(count: int, batch: int) -> None:
    made = Batches(some(count), PRE, batch, ("plain",))
    index = torch.cat([made._index(step) for step in range(3 * made.steps_per_pass)])
    for start in range(0, len(index) - count + 1, count):
        assert sorted(index[start : start + count].tolist()) == list(range(count))
    made.close()


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made = Batches(some(), PRE, 8, VIEWS)
    made.at(0)
    made.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_is_the_one_preprocessing() -> None:
    pixels = some(7)
    expected = images.normalise(np.asarray(pixels.images), PRE)
    found = list(batches.plain(pixels, PRE, 3))
    assert torch.cat([i for i, _, _ in found]).tolist() == list(range(7))
    np.testing.assert_allclose(torch.cat([x for _, x, _ in found]).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert [y.tolist() for _, _, y in found if y is not None] == [[0, 1, 2], [0, 1, 2], [0]]
    raw = Batches(pixels, PRE, 3, ("plain",)).at(0)
    np.testing.assert_allclose(raw.views["plain"].numpy(), expected[raw.index.numpy()], rtol=1e-6, atol=1e-6)
    assert raw.labels is not None
    assert raw.labels.tolist() == (raw.index % 3).tolist()


def test_unlabelled_stays_unlabelled() -> None:
    assert Batches(some(labels=False), PRE, 4).at(0).labels is None
    assert all(y is None for _, _, y in batches.plain(some(labels=False), PRE, 4))


@pytest.mark.parametrize("view", VIEWS)
def test_views_have_the_shape_and_range_of_the_network(view: str) -> None:
    found = Batches(some(), PRE, 6, (view,)).at(0).views[view]
    assert (found.shape, found.dtype, found.is_contiguous()) == ((6, 3, 12, 16), torch.float32, True)
    low, high = (images.normalise(np.full((1, 1, 1, 3), v, np.uint8), PRE) for v in (0, 255))
    assert (found >= torch.from_numpy(low) - 1e-4).all()
    assert (found <= torch.from_numpy(high) + 1e-4).all()


# --- views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def raw(count: int = 6) -> torch.Tensor:
    taken = some(count).images
    assert isinstance(taken, torch.Tensor)
    return taken.permute(0, 3, 1, 2)


def test_a_full_crop_without_flip_is_the_image() -> None:
    theta = torch.ones(6)
    found = views._sample(raw(), (theta, theta), (theta * 0, theta * 0))
    torch.testing.assert_close(found, raw().float(), atol=1e-3, rtol=0)
    mirrored = views._sample(raw(), (-theta, theta), (theta * 0, theta * 0))
    torch.testing.assert_close(mirrored, raw().float().flip(3), atol=1e-3, rtol=0)


def test_a_shift_is_by_whole_pixels_reflected() -> None:
    found = views.shift_and_flip(raw(), generator(), flip=False)
    for before, after in zip(raw().float(), found, strict=True):
        padded = torch.nn.functional.pad(before[None], (2, 2, 2, 2), mode="replicate")[0]
        inner = after[:, 2:-2, 2:-2]
        hits = [
            torch.allclose(padded[:, y + 2 : y + 10, x + 2 : x + 14], inner, atol=1e-2)
            for y in range(5)
            for x in range(5)
        ]
        assert sum(hits) == 1


def test_flip_can_be_turned_off() -> None:
    ramp = torch.arange(16.0).expand(64, 3, 12, 16) * 15
    crop, shift = partial(views.crop_and_flip, area=(0.7, 1.0)), views.shift_and_flip
    for make in (crop, shift):
        made = [make(ramp, generator(), flip=flip) for flip in (True, False)]
        rising = [(images[..., 8] > images[..., 6]).flatten(1).all(1) for images in made]
        assert 10 < int(rising[0].sum()) < 54
        assert bool(rising[1].all())


def test_a_crop_keeps_the_area_it_says() -> None:
    ramp = torch.arange(160.0).expand(200, 3, 120, 160)
    found = views.crop_and_flip(ramp, generator(), area=(0.5, 0.5), flip=False)
    # The slope of the ramp is the width that was kept; the area is its product with the height's.
    width = (found[:, 0, 60, 100] - found[:, 0, 60, 50]) / 50
    rows = torch.arange(120.0)[:, None].expand(200, 3, 120, 160)
    again = views.crop_and_flip(rows, generator(), area=(0.5, 0.5), flip=False)
    height = (again[:, 0, 80, 80] - again[:, 0, 40, 80]) / 40
    torch.testing.assert_close(width * height, torch.full((200,), 0.5), atol=5e-3, rtol=0)
    assert width.min() < 0.65 < 0.78 < width.max()


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("number", range(len(views._OPERATIONS)))
def test_each_strong_operation_takes_every_strength(number: int, strength: float) -> None:
    found = views._OPERATIONS[number](raw()[0], strength)
    assert (found.shape, found.dtype) == ((3, 12, 16), torch.uint8)


def test_small_grey_digits_take_strong_views() -> None:
    pixels = Pixels(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), None, list("abcd"))
    made = Batches(pixels, Preprocess((8, 8)), 4, ("strong",), flip=False)
    assert all(torch.isfinite(made.at(step).views["strong"]).all() for step in range(20))


# --- manners


def test_helpful_errors() -> None:
    with pytest.raises(UsageError, match="did you mean 'train'"):
        Batches(some(), PRE, 4, ("trian",))
    with pytest.raises(DataError, match="no images to make batches of"):
        Batches(some(0), PRE, 4)
    with pytest.raises(UsageError, match="batch 0"):
        Batches(some(), PRE, 0)
    with pytest.raises(UsageError, match="crop"):
        Batches(some(), PRE, 4, crop=(0.0, 1.0))


def test_the_thread_ends() -> None:
    before = set(threading.enumerate())
    made = Batches(some(), PRE, 4)
    made.at(0)
    made.close()
    assert set(threading.enumerate()) <= before


def test_an_error_in_the_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = some()
    made = Batches(pixels, PRE, 4)

    def bad(index: torch.Tensor) -> torch.Tensor:
        raise DataError("the disk went away")

    monkeypatch.setattr(pixels, "take", bad)
    for step in (0, 0, 1):
        with pytest.raises(DataError, match="the disk went away"):
            made.at(step)
    monkeypatch.undo()
    assert made.at(1).index.shape == (4,)
    made.at(2)
    made._next[3].result()  # 3 is made ahead, before the disk goes
    monkeypatch.setattr(pixels, "take", bad)
    made.at(3)
    with pytest.raises(DataError, match="the disk went away"):
        made.at(4)
    monkeypatch.undo()
    assert made.at(4).index.shape == (4,)
