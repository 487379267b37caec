"""Datasets that are written as they are made: the memory used does not grow with them."""

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

BLOCK = 1 << 23  # bytes of rows in a batch of the file


def write_dataset(schema, batches: Iterable):
    """The `datasets.Dataset` of `pyarrow.RecordBatch`es of `schema`, mapped from a file in the temporary folder.

    The folder (below $TMPDIR) is removed when the process ends, and with it what `Dataset.map` and TRL put beside the
    file: no run leaves its data on the user's disk.
    """
    import pyarrow  # both are slow to import
    from datasets import Dataset

    folder = Path(tempfile.mkdtemp(prefix="gpt-recipes-"))
    # Not atexit: a child of multiprocessing ends without it, and a plain fork would take its parent's folder along.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-100)
    path = folder / "data.arrow"
    blocks = _blocks(batches)
    # datasets cannot map a file without any batch.
    first = next(blocks, None) or pyarrow.RecordBatch.from_pylist([], schema)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for block in itertools.chain([first], blocks):
            writer.write_batch(block)
    return Dataset.from_file(str(path))


def _blocks(batches: Iterable) -> Iterator:
    """The same rows in batches of `BLOCK` bytes or a little more.

    Opening the file reads the head of each batch, and the system maps 64 KiB around what is read: of a file in batches of
    a few hundred rows that is a tenth, held in memory before anybody has looked at a row.
    """
    import pyarrow

    waiting, size = [], 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= BLOCK:
            yield pyarrow.concat_batches(waiting)
            waiting, size = [], 0
    if waiting:
        yield pyarrow.concat_batches(waiting)
