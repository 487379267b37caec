"""Ask a model about every span, and keep each reply in a journal: a stopped run loses and pays nothing twice."""

import hashlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm.auto import tqdm

from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.common.text import counted
from data_prep.questions.server import Server
from data_prep.ranking.journal import Journal


def digest(texts: list[str]) -> str:
    """A number that tells other texts from these, for the settings of a journal."""
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)} ".encode() + text.encode())
    return found.hexdigest()


def ask_server(server: Server, prompts: list[list[dict]], journal: Journal, concurrency: int) -> list[dict]:
    """The replies to all prompts: a server is asked what the journal has none to, `concurrency` requests at a time.

    A prompt that alone is refused, see `Server.reply_or_refusal`, is counted and printed. It is not in the journal: a run
    that goes on asks again. Raises the first error; the replies that have come by then are in the journal.
    """
    missing = [number for number in range(len(prompts)) if number not in journal.rankings]
    pool, failure, stopped = ThreadPoolExecutor(concurrency), None, threading.Event()
    refused: dict[int, dict] = {}

    def reply(number: int) -> dict | None:
        if stopped.is_set():  # at once: this thread may be a few requests on before the one below hears of the failure
            return None
        try:
            return server.reply_or_refusal(prompts[number])
        except BaseException:
            stopped.set()
            raise

    try:
        asked = {pool.submit(reply, number): number for number in missing}
        bar = tqdm(as_completed(asked), "asking", len(prompts), initial=len(prompts) - len(missing), disable=None)
        for done in bar:
            if done.cancelled():
                continue
            if done.exception() is None:
                if done.result() is None:  # not asked
                    continue
                if "refused" in done.result():
                    refused[asked[done]] = done.result()
                else:
                    journal.add([{"row": asked[done], **done.result()}])
            elif failure is None:
                failure = done.exception()
                for other in asked:  # those on their way are paid for: they are waited for
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure
    if refused:
        print(
            f"{server.url}: refused {len(refused):,} of {counted(len(prompts), 'prompt')}, which count as not answered; the "
            f"first: {refused[min(refused)]['refused']}"
        )
    return [
        journal.rankings[number] if number in journal.rankings else refused[number] for number in range(len(prompts))
    ]


def ask_checkpoint(
    name: str,
    prompts: list[list[dict]],
    journal: Journal,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    shorter: str = "a smaller --span",
) -> list[dict]:
    """The replies to all prompts: a model in a folder or on the Hub is asked what the journal has none to.

    Args:
        shorter: what to use where a prompt does not fit the context, in words.

    Raises InputError for a model that cannot be asked, and for a prompt that does not fit its context.
    """
    # Slow to import: after the input has been checked.
    from data_prep.models.generation import generate_answers
    from data_prep.models.loading import check_chat, context_of, load_checkpoint
    from data_prep.tokens.chat_encoder import encode_prompts

    model, tokenizer = load_checkpoint(name)
    check_chat(name, model, tokenizer, max_new_tokens)
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts)]
    room = (context_of(model.config) or math.inf) - max_new_tokens
    if (longest := max(lengths)) > room:
        raise InputError(
            f"{name}: the longest prompt has {longest:,} tokens, but its context has room for {room:,} beside "
            f"--max_new_tokens {max_new_tokens:,}: use {shorter}, or a model with a longer context"
        )
    # In parts that do not depend on what is there already, so that a resumed run gives the same replies.
    for part in batched(tqdm(range(len(prompts)), "asking", disable=None), batch_size):
        if all(number in journal.rankings for number in part):
            continue
        answers = generate_answers(
            model,
            tokenizer,
            [prompts[number] for number in part],
            max_new_tokens,
            temperature,
            batch_size=batch_size,
            seed=seed + part[0],
        )
        journal.add(
            [
                {
                    "row": number,
                    "text": answer["text"],
                    "finish": "stop" if answer["stopped"] else "length",
                    "requests": 1,
                    "prompt_tokens": lengths[number],
                    "completion_tokens": answer["tokens"],
                }
                for number, (answer,) in zip(part, answers, strict=True)
                if number not in journal.rankings
            ]
        )
    return [journal.rankings[number] for number in range(len(prompts))]


def cost(replies: list[dict]) -> tuple[dict, str]:
    """What the replies cost, as numbers and in words: requests, and the tokens that were reported."""
    total = {
        "requests": sum(reply["requests"] for reply in replies),
        "prompt_tokens": sum(reply["prompt_tokens"] or 0 for reply in replies),
        "completion_tokens": sum(reply["completion_tokens"] or 0 for reply in replies),
    }
    line = f"cost: {counted(total['requests'], 'request')}"
    # A refused prompt takes two requests: the second asks whether others are refused as well.
    if again := total["requests"] - len(replies) - sum("refused" in reply for reply in replies):
        line += f" ({again:,} of them again)"
    line += f", {counted(total['prompt_tokens'], 'prompt token')}, {counted(total['completion_tokens'], 'completion token')}"
    if silent := sum(reply["prompt_tokens"] is None for reply in replies):
        line += f"; {silent:,} of the replies came without a count of tokens"
    return total, line
