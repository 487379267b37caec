"""Work submitted ahead: the results in order, and never more in work than was said."""

from concurrent.futures import Future

import pytest

from data_prep.common.parallel import in_order, submit_ahead


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_come_in_order_with_so_many_submitted_ahead(ahead):
    futures: list[Future] = []

    def submit(item: int) -> Future:
        futures.append(Future())
        futures[-1].set_result(item * item)
        return futures[-1]

    taken = 0
    for item, result in submit_ahead(submit, range(10), ahead):
        assert (item, result) == (taken, taken * taken)
        taken += 1
        assert len(futures) == min(taken + ahead, 10)
    assert taken == 10


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_keep_their_order_whatever_the_workers(num_workers):
    batches = [[number, number] for number in range(20)]
    assert list(in_order(sum, batches, num_workers)) == [([number, number], 2 * number) for number in range(20)]
