"""Blocks of token ids that pretraining reads, and whether a model keeps the documents in them apart."""

import torch
from torch.utils.data import Dataset

from data_prep.common.errors import InputError
from data_prep.models.loading import carries_state, takes_positions


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


def end_of_documents(ids, tokenizer, name: str) -> int:
    """The id that ends every document in the shards `ids`, the eos_token of the model `name`. InputError if it is not."""
    end = int(ids[len(ids) - 1 :][0])
    if end != tokenizer.eos_token_id:
        raise InputError(
            f"{ids.folder}: its documents end with {tokenizer.convert_ids_to_tokens(end)}, and {name} ends its own with "
            f"{tokenizer.eos_token}; run data_prep.mix_corpus again with tokenizer: {name}"
        )
    return end


@torch.no_grad()
def check_documents_apart(
    model, end_of_text: int, option: str = "document_attention", parts: str = "documents"
) -> None:
    """Raise InputError if what comes before a document in a block of `Blocks` changes what this model makes of it.

    Tried on two blocks that differ in their first document alone: the second must come out the same. Where the model cannot
    be run as it lies, with attention kernels that need a GPU or in the parts of ZeRO-3, its config is asked.

    Args:
        option, parts: what asks for it, and what the parts of a block are called, in the error.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled  # slow to import

    kind, attention = type(model).__name__, model.config._attn_implementation
    if not takes_positions(model):
        raise InputError(
            f"{option}: {kind} takes no positions, which keep {parts} of a row apart; set {option}: false"
        )
    carries = carries_state(model.config)
    if attention not in ("eager", "sdpa") or is_deepspeed_zero3_enabled():
        if carries:
            raise InputError(
                f"{option}: {kind} has layers that carry a state from token to token, from one to the next of the {parts} of "
                f"a row too; set {option}: false"
            )
        return
    block = torch.tensor([[end_of_text, *first, end_of_text, 7, 8, 9] for first in ((1, 2, 3), (4, 5, 6))])
    block = block.to(model.device)
    positions = torch.arange(4).repeat(2, 2).to(model.device)
    logits = model(input_ids=block, position_ids=positions, use_cache=False).logits[:, 4:].float()
    close = 1e-4 if model.dtype == torch.float32 else 0.02  # experts round their rows together
    if (apart := (logits[0] - logits[1]).abs().max().item()) > close * logits.abs().max().item():
        remedy = "" if carries else ", or take another attn_implementation"
        raise InputError(
            f"{option}: in {kind} with attention {attention!r} {parts} of a row see each other all the same: what comes "
            f"before one moves its logits by {apart:.3g}; set {option}: false{remedy}"
        )
