"""Datasets that go to disk as they are made: the memory used does not grow with their size."""

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

BLOCK = 1 << 23  # bytes per batch in the file


def write_dataset(schema, batches: Iterable):
    """A `datasets.Dataset` of `pyarrow.RecordBatch`es with the given schema, memory-mapped from a temporary file.

    Its folder (below $TMPDIR) is removed when the process ends, with all that `Dataset.map` and TRL write beside the file:
    no run leaves data on the user's disk.
    """
    import pyarrow  # both are slow to import
    from datasets import Dataset

    folder = Path(tempfile.mkdtemp(prefix="gpt-recipes-"))
    # Not atexit: children of multiprocessing skip it, and a plain fork would remove the folder of its parent.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-100)
    path = folder / "data.arrow"
    blocks = _blocks(batches)
    # datasets cannot map a file without batches.
    first = next(blocks, None) or pyarrow.RecordBatch.from_pylist([], schema)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for block in itertools.chain([first], blocks):
            writer.write_batch(block)
    return Dataset.from_file(str(path))


def _blocks(batches: Iterable) -> Iterator:
    """The same rows in batches of at least `BLOCK` bytes.

    Opening the file reads the head of every batch, and the system maps 64 KiB around what is read. With batches of a few
    hundred rows, a tenth of the file would be in memory before anyone reads a row.
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
