"""`generate` for many prompts at once, without the rows that have ended.

`generate` carries every row of a batch along to the end of the longest answer. Here a call ends as soon as half of its
rows have, and the others go on, from the cache that they have, in a call of their own.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

SMALL = 8  # with no more rows than this, another call costs more than it saves


class FewOpen(StoppingCriteria):
    """End the call for every row as soon as at most `count` answers are without a token of `end`."""

    def __init__(self, end: torch.Tensor, prompt_length: int, count: int) -> None:
        self.end, self.prompt_length, self.count = end, prompt_length, count

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        ended = torch.isin(input_ids[:, self.prompt_length :], self.end).any(1)
        return torch.full_like(ended, bool((~ended).sum() <= self.count))


@torch.no_grad()
def decode(
    model,
    batch: dict[str, torch.Tensor],
    settings: GenerationConfig,
    processors: Callable[[torch.Tensor], list] = lambda rows: [],
    shrink: bool = True,
) -> torch.Tensor:
    """The tokens that `model` puts behind N prompts, (N, up to `settings.max_new_tokens`), padded behind an end.

    Args:
        batch: `input_ids` and `attention_mask` of the prompts, padded on the left.
        settings: with `max_new_tokens`, `eos_token_id` and `pad_token_id`, one sequence per prompt.
        processors: the logits processors of a call for these of the rows.
        shrink: False makes one call for all rows.
    """
    settings = copy.deepcopy(settings)
    settings.return_dict_in_generate = True
    longest, width = settings.max_new_tokens, batch["input_ids"].shape[1]
    rows = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
    end = torch.as_tensor(settings.eos_token_id, device=rows.device)
    answers = torch.full((len(rows), longest), settings.pad_token_id, device=rows.device)
    drawn, given = 0, dict(batch)
    while drawn < longest and len(rows):
        settings.max_new_tokens = longest - drawn
        few = len(rows) // 2 if shrink and len(rows) > SMALL else 0
        output = model.generate(
            **given,
            generation_config=settings,
            logits_processor=LogitsProcessorList(processors(rows)),
            stopping_criteria=StoppingCriteriaList([FewOpen(end, width, few)]),
        )
        new, cache = output.sequences[:, width:], output.past_key_values
        drawn = new.shape[1]
        answers[rows, :drawn] = new
        kept = (~torch.isin(new, end).any(1)).nonzero().squeeze(1)
        rows = rows[kept]
        seen = nn.functional.pad(batch["attention_mask"][rows], (0, drawn), value=1)
        given = {"input_ids": output.sequences[kept], "attention_mask": seen}
        # A recurrent state cannot be cut to some of its rows: it is computed again.
        if all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
            cache.batch_select_indices(kept)
            given["past_key_values"] = cache
    return answers
