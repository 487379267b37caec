"""Pad rows of ids by hand: a tokenizer without a padding token refuses to."""

import torch


def padded(rows: list[list[int]], pad_token_id: int, side: str, device: torch.device) -> dict[str, torch.Tensor]:
    """{"input_ids", "attention_mask"} of `rows`, both (rows, length of the longest), padded on the "left" or "right"."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad_token_id), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row, dtype=torch.long), 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
