"""Blocks of token ids that pretraining reads."""

import torch
from torch.utils.data import Dataset


class Blocks(Dataset):
    """Consecutive blocks of `length` ids; the last ids that do not fill a block are left out.

    Given the id of `end_of_text`, positions start again at each: transformers then keeps a document from attending to
    those before it. The end of text opens a document, which its first token is predicted from, as in data_prep/models/bits_per_byte.py.
    """

    def __init__(self, ids, length: int, end_of_text: int | None = None) -> None:
        self.ids, self.length, self.end_of_text = ids, length, end_of_text

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, index: int) -> dict:
        block = torch.from_numpy(self.ids[index * self.length : (index + 1) * self.length].astype("int64"))
        if self.end_of_text is None:
            return {"input_ids": block, "labels": block}
        places = torch.arange(self.length)
        starts = torch.where(block == self.end_of_text, places, 0).cummax(0).values
        return {"input_ids": block, "labels": block, "position_ids": places - starts}
