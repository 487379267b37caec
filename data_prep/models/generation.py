"""Generate answers: the one helper that data scripts, recipes and evaluations use."""

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig

from data_prep.common.errors import InputError
from data_prep.common.machine import bf16_is_fast
from data_prep.models.batched_generate import decode
from data_prep.models.loading import context_of
from data_prep.models.own_draws import OwnDraws, uniform_draws
from data_prep.models.padding import padded
from data_prep.tokens.chat_encoder import encode_prompts, end_of_turn
from data_prep.tokens.generation_prompt import head_of_answers, without_head


@torch.no_grad()
def generate_answers(
    model,
    tokenizer,
    prompts: list[list[dict]],
    max_new_tokens: int,
    temperature: float = 0.0,
    num_return_sequences: int = 1,
    batch_size: int = 128,
    seed: int = 42,
    desc: str = "answering",
    exact: bool = False,
) -> list[list[dict]]:
    """Generate answers to conversations.

    Args:
        prompts: each a list of messages that ends with the user's turn.
        temperature: 0 is greedy.
        num_return_sequences: answers per prompt.
        batch_size: sequences generated at once.
        seed: of the sampling, in which every answer has random numbers of its own; the caller's random state is left as
            it was.
        exact: sample in the model's precision, sums in 64 bits: the same answers whatever the batch size. Slower where
            bf16 is fast.

    Returns for every prompt its answers, each {"text": str, "stopped": bool, "tokens": int, "ids": list[int]}. `ids` are
    the sampled tokens, `tokens` is their number, `text` leaves out what the template itself writes at the head of an answer
    (`head_of_answers`), and `stopped` says that they end with one of `stop_token_ids`, which is
    the case if the model generated one within `max_new_tokens`.
    """
    model.eval()
    encoded = encode_prompts(tokenizer, prompts)
    context = context_of(model.config)
    max_prompt_length = context - max_new_tokens if context else max(map(len, encoded), default=0)
    if truncated := sum(len(ids) > max_prompt_length for ids in encoded):
        print(
            f"{truncated:,} of {len(encoded):,} prompts are longer than {max_prompt_length} tokens, the context minus "
            "max_new_tokens: truncated on the left"
        )
    encoded = [ids[-max_prompt_length:] for ids in encoded]
    end, head = stop_token_ids(model.generation_config, tokenizer), head_of_answers(tokenizer)
    pad = tokenizer.pad_token_id
    filler = next((token for token in (pad, *end) if token is not None), 0)  # any will do: it is masked
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # OwnDraws does it
        use_cache=True,
        eos_token_id=end,
        pad_token_id=filler,
        suppress_tokens=[pad] if pad not in (None, *end) else None,
    )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))  # by length: less padding
    answers: list[list[dict]] = [[] for _ in prompts]
    rows = max(1, batch_size // num_return_sequences)
    in_bf16 = temperature > 0 and not exact and bf16_is_fast(model.device.type)
    draws_in = sums_in(model.device, exact)
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=len(prompts) < 2 or None) as bar:
        for start in range(0, len(order), rows):
            indices = order[start : start + rows]
            repeated = [encoded[i] for i in indices for _ in range(num_return_sequences)]
            batch = padded(repeated, filler, "left", model.device)
            processors = {}
            if temperature > 0:
                draws = uniform_draws(indices, num_return_sequences, max_new_tokens, seed, draws_in["dtype"])
                draws = draws.flatten(0, 1).to(draws_in["device"])
                processors["processors"] = OwnDraws(draws, batch["input_ids"].shape[1], temperature).of_rows
            # Sampling is noisy anyway, so it may use bf16 if that is faster. Greedy answers keep the model's precision.
            with torch.autocast(model.device.type, torch.bfloat16, enabled=in_bf16):
                replies = decode(model, batch, settings, **processors)
            for number, reply in enumerate(replies.tolist()):
                length = next((i for i, token in enumerate(reply) if token in end), None)
                text = tokenizer.decode(without_head(reply[:length], head), skip_special_tokens=True)
                tokens = len(reply) if length is None else length + 1
                answer = {"text": text, "stopped": length is not None, "tokens": tokens, "ids": reply[:tokens]}
                answers[indices[number // num_return_sequences]].append(answer)
            bar.update(len(indices))
    return answers


def sums_in(device: torch.device, exact: bool = False) -> dict:
    """{"dtype", "device"} of what `OwnDraws` cumulates for a model on `device`: `exact`, or what is fast there.

    A GPU adds up in parallel, so that in 32 bits a later sum may be below an earlier one; 64 bits cost it little. Not
    every accelerator has them.
    """
    if device.type == "cuda":
        return {"dtype": torch.float64, "device": device}
    return {"dtype": torch.float64, "device": "cpu"} if exact else {"dtype": torch.float32, "device": device}


def stop_token_ids(settings: GenerationConfig | None, tokenizer) -> list[int]:
    """The ids that an answer ends with: the end of turn of the chat template, the tokenizer's end of sequence, and what
    else the model's generation config stops at, in this order."""
    try:
        turn = end_of_turn(tokenizer) if tokenizer.chat_template else None
    except InputError:  # a template whose turns cannot be found
        turn = None
    first = [] if turn is None else [tokenizer.convert_tokens_to_ids(turn)]
    return list(dict.fromkeys(first + named_stop_ids(settings, tokenizer)))


def named_stop_ids(settings: GenerationConfig | None, tokenizer) -> list[int]:
    """The same without the chat template, which a base model may have too: where the model says that it stops."""
    named = settings.eos_token_id if settings else None
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(token for token in ids if token is not None))
