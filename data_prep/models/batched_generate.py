"""Batched `generate` that drops finished rows.

`generate` keeps every row of a batch until the longest answer ends. Here a call ends as soon as half of its rows have
ended, and another call continues the others from their part of the cache.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

SMALL = 8  # for this many rows or fewer, another call costs more than it saves


class FewOpen(StoppingCriteria):
    """End the call for all rows as soon as at most `count` answers have no token of `end`."""

    def __init__(self, end: torch.Tensor, prompt_length: int, count: int) -> None:
        self.end, self.prompt_length, self.count = end, prompt_length, count

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        ended = torch.isin(input_ids[:, self.prompt_length :], self.end).any(1)
        return ((~ended).sum() <= self.count).expand_as(ended)  # not as a number: a GPU would be waited for


@contextlib.contextmanager
def ended_rows_unsaid() -> Iterator[None]:
    """Without transformers' warning of padded rows: what is padded has ended, and what follows there is not read."""
    logger = logging.getLogger("transformers.modeling_utils")

    def stays(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("We strongly recommend passing in an `attention_mask`")

    logger.addFilter(stays)
    try:
        yield
    finally:
        logger.removeFilter(stays)


@contextlib.contextmanager
def given_settings_alone(model) -> Iterator[None]:
    """Without the model's own generation config, from which `generate` fills whatever its settings leave open.

    A repetition penalty there would change samples, but not the probabilities that are measured or trained on.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own


@torch.no_grad()
def decode(
    model,
    batch: dict[str, torch.Tensor],
    settings: GenerationConfig,
    processors: Callable[[torch.Tensor], list] = lambda rows: [],
) -> torch.Tensor:
    """The tokens that `model` generates after N prompts, (N, `settings.max_new_tokens`), padded after an end token.

    Args:
        batch: `input_ids` and `attention_mask` of the prompts, padded on the left.
        settings: with `max_new_tokens`, `eos_token_id` and `pad_token_id`; one sequence per prompt.
        processors: given the indices of the rows of a call, its logits processors.
    """
    settings = copy.deepcopy(settings)
    settings.return_dict_in_generate = True
    longest, width = settings.max_new_tokens, batch["input_ids"].shape[1]
    rows = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
    end = torch.as_tensor(settings.eos_token_id, device=rows.device)
    answers = torch.full((len(rows), longest), settings.pad_token_id, device=rows.device)
    length, given = 0, dict(batch)
    while length < longest and len(rows):
        settings.max_new_tokens = longest - length
        few = len(rows) // 2 if len(rows) > SMALL else 0
        with ended_rows_unsaid(), given_settings_alone(model):
            output = model.generate(
                **given,
                generation_config=settings,
                logits_processor=LogitsProcessorList(processors(rows)),
                stopping_criteria=StoppingCriteriaList([FewOpen(end, width, few)]),
            )
        new, cache = output.sequences[:, width:], output.past_key_values
        length = new.shape[1]
        answers[rows, :length] = new
        kept = (~torch.isin(new, end).any(1)).nonzero().squeeze(1)
        rows = rows[kept]
        seen = nn.functional.pad(batch["attention_mask"][rows], (0, length), value=1)
        given = {"input_ids": output.sequences[kept], "attention_mask": seen}
        # Rows cannot be selected from a recurrent state: it is computed again.
        if all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
            cache.batch_select_indices(kept)
            given["past_key_values"] = cache
    return answers
