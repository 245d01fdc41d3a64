"""What ranks write is what the tables describe."""

import pytest
import torch.distributed as dist
from torch import nn, ones, optim

from course_lib import hosts, measure, run
from course_lib.record.tables import COLUMNS

TWO_HOSTS = hosts.Linked(2)


@pytest.fixture(scope="module")
def job():
    def train():
        model = nn.Linear(4, 4)
        optimizer = optim.SGD(model.parameters())
        for _ in range(3):
            with measure.step(model, optimizer, samples=2):
                model(ones(2, 4)).sum().backward()
                dist.all_reduce(model.weight.grad)
                optimizer.step()

    return run(train, ranks=2, on=None if TWO_HOSTS.missing() else TWO_HOSTS)


@pytest.mark.parametrize("table", COLUMNS)
def test_every_row_has_the_columns_of_its_table_and_no_other(job, table):
    rows = job.records[table]
    if table == "links" and (reason := TWO_HOSTS.missing()):
        pytest.skip(reason)
    assert rows and all(set(row) == set(COLUMNS[table]) for row in rows)
    assert {column: str(dtype) for column, dtype in getattr(job, table).dtypes.items()} == COLUMNS[table]
