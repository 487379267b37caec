"""Datasets that are written as they are made: the memory used does not grow with them."""

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_dataset(schema, batches: Iterable):
    """The `datasets.Dataset` of `pyarrow.RecordBatch`es of `schema`, mapped from a file in the temporary folder.

    The folder (below $TMPDIR) is removed when the process ends, and with it what `Dataset.map` and TRL put beside the
    file: no run leaves its data on the user's disk.
    """
    import pyarrow  # both are slow to import
    from datasets import Dataset

    folder = Path(tempfile.mkdtemp(prefix="gpt-recipes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "data.arrow"
    batches = iter(batches)
    # datasets cannot map a file without any batch.
    first = next(batches, None) or pyarrow.RecordBatch.from_pylist([], schema)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
    return Dataset.from_file(str(path))
