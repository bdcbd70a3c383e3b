"""How samples come from threads and from workers."""

import multiprocessing

import grain
import pytest

from vlvm_jax.data.loading import loaded
from vlvm_jax.data.tuning import Loading


def square(number):
    return {"number": number, "square": number**2}


def samples(count=40):
    return grain.MapDataset.range(count).map(square)


@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_come_in_order(workers, together):
    loading = Loading(workers=workers, threads=2, samples=8, batches=1, together=together)
    assert list(loaded(samples(), loading, rows=4)) == [square(number) for number in range(40)]


def test_workers_start_together():
    iterator = iter(loaded(samples(), Loading(workers=2, threads=1, samples=4, batches=1), rows=4))
    assert not multiprocessing.active_children()
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_goes_on_where_its_state_was_taken(workers):
    loading = Loading(workers=workers, threads=1, samples=4, batches=1, together=3)
    iterator = iter(loaded(samples(), loading, rows=4))
    for number in range(10):
        assert next(iterator) == square(number)
    again = iter(loaded(samples(), loading, rows=4))
    again.set_state(iterator.get_state())
    assert [next(again) for _ in range(10)] == [square(number) for number in range(10, 20)]
