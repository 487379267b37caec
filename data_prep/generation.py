"""The one place where a model is asked for answers: by the data scripts, the recipes' last checks and the evaluations."""

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig

from data_prep.chat_tokens import ChatEncoder, special_token_text
from data_prep.decoding import decode
from data_prep.machine import bf16_is_fast


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
) -> list[list[dict]]:
    """Answers to conversations.

    Args:
        prompts: each a list of messages that ends on the user's turn.
        temperature: 0 is greedy.
        num_return_sequences: answers per prompt.
        batch_size: sequences generated at once.
        seed: of the draws; the caller's random numbers are left as they were.

    Returns for every prompt its answers, as {"text": str, "stopped": bool, "tokens": int, "ids": list[int]}: `stopped`
    says that the model ended its turn by itself within `max_new_tokens`; `tokens` counts the end-of-turn token, which is
    the last of `ids`, the tokens as they were drawn.
    """
    model.eval()
    encoded = encode_prompts(tokenizer, prompts)
    room = model.config.max_position_embeddings - max_new_tokens
    if cut := sum(len(ids) > room for ids in encoded):
        print(f"{cut:,} of {len(encoded):,} prompts are longer than {room} tokens, the context without the answer: "
              "their beginning is cut off")  # fmt: skip
    encoded = [ids[-room:] for ids in encoded]
    end = end_of_turn_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature > 0 else None,  # the library's default of 50 would draw from another distribution
        use_cache=True,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.pad_token_id] if tokenizer.pad_token_id not in end else None,
    )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))  # like lengths together: less padding
    answers: list[list[dict]] = [[] for _ in prompts]
    rows = max(1, batch_size // num_return_sequences)
    with torch.random.fork_rng(), tqdm(total=len(prompts), desc=desc, unit="prompt", disable=len(prompts) < 2) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(order), rows):
            indices = order[start : start + rows]
            batch = tokenizer.pad(
                {"input_ids": [encoded[i] for i in indices for _ in range(num_return_sequences)]},
                padding_side="left",
                return_tensors="pt",
            )
            # Draws are noisy anyway: in bf16 where that is faster. A greedy answer is the model's own, in its precision.
            with torch.autocast(model.device.type, torch.bfloat16, enabled=temperature > 0 and bf16_is_fast()):
                replies = decode(model, batch.to(model.device), settings)
            for number, reply in enumerate(replies.tolist()):
                length = next((i for i, token in enumerate(reply) if token in end), None)
                text = tokenizer.decode(reply[:length], skip_special_tokens=True)
                tokens = len(reply) if length is None else length + 1
                answer = {"text": text, "stopped": length is not None, "tokens": tokens, "ids": reply[:tokens]}
                answers[indices[number // num_return_sequences]].append(answer)
            bar.update(len(indices))
    return answers


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """The ids of each conversation, up to where the assistant's turn begins; see `encode_conversations`."""
    return encode_conversations(tokenizer, prompts, add_generation_prompt=True)


def encode_conversations(
    tokenizer, conversations: list[list[dict]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """The ids that the chat template makes of each conversation.

    As in training (data_prep/chat_tokens.py) what is typed stays text: "<|endoftext|>" in a turn is characters.
    """
    rendered = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
        for messages in conversations
    ]
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    special = special_token_text(tokenizer)
    spelled = [
        index
        for index, messages in enumerate(conversations)
        if any(special.search(message["content"]) for message in messages)
    ]
    if spelled:  # the encoder has copies of the tokenizer: where nobody spells out a token, they are not made
        encoder = ChatEncoder(tokenizer, assistant_only=False)
        again = encoder.render([conversations[index] for index in spelled], add_generation_prompt)
        for index, (ids, _) in zip(spelled, encoder.encode(again), strict=True):
            encoded[index] = ids.tolist()
    return encoded


def encode_text(tokenizer, text: str) -> list[int]:
    """The ids of a text that is no conversation, control tokens that it spells out as characters."""
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def end_of_turn_ids(model, tokenizer) -> list[int]:
    """The ids a model stops at: the tokenizer's end of turn, and what its generation config names beside it."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    named = named if isinstance(named, list) else [named]
    return sorted({tokenizer.eos_token_id, *(token for token in named if token is not None)})


def split_last_answer(messages: list[dict]) -> tuple[list[dict], str]:
    """(the conversation up to the last assistant turn, that turn's text): the prompt and its reference answer."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last]["content"]
