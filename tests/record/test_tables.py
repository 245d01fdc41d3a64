"""What ranks write is what the tables describe."""

import pytest
import torch.distributed as dist
from torch import nn, ones, optim

from course_lib import measure, run
from course_lib.record.tables import COLUMNS


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

    return run(train, ranks=2)


@pytest.mark.parametrize("table", COLUMNS)
def test_every_row_has_the_columns_of_its_table_and_no_other(job, table):
    rows = job.records[table]
    assert rows and all(set(row) == set(COLUMNS[table]) for row in rows)
    assert {column: str(dtype) for column, dtype in getattr(job, table).dtypes.items()} == COLUMNS[table]
