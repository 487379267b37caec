"""Whom a chat talks to: a checkpoint in this process, which answers or continues text, or a model behind an address."""

import math
import random
import threading
from collections.abc import Callable
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.questions.server import Server

# A base model in front of these seems to converse (Karpathy's "State of GPT": "base models can be tricked into being
# assistants" by a document that looks like a conversation).
FAKE_DIALOGUE = {
    "en": (
        ("Hello, who are you?", "I am an assistant. I answer questions."),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("How much is 2 + 2?", "2 + 2 is 4."),
    ),
    "zh": (
        ("你好，你是谁？", "我是一个助手，负责回答问题。"),
        ("法国的首都是哪里？", "法国的首都是巴黎。"),
        ("2 + 2 等于多少？", "2 + 2 等于 4。"),
    ),
}
QUESTION, ANSWER = "Q:", "A:"
LONGEST_ANSWER = 4096  # tokens, that the page lets anybody ask for
PATIENCE = 300.0  # seconds without a piece from a server


class Options(NamedTuple):
    """How a message is to be answered."""

    temperature: float  # 0 is greedy
    max_new_tokens: int
    fake_dialogue: str = ""  # its language; "": a base model continues the message
    system: str = ""


class Said(NamedTuple):
    """An answer, and what it was given."""

    text: str
    ended: bool  # by itself
    tokens: int | None
    prompt: str  # as the model read it; "" for a server
    forgotten: int = 0  # exchanges that no longer fit
    truncated: int = 0  # tokens of the message that do not


def is_chat_model(model, tokenizer) -> bool:
    """Whether the template ends an assistant's turn with a token at which the model stops."""
    from data_prep.models.generation import named_stop_ids

    if tokenizer.chat_template is None:
        return False
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    written = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
    ids = named_stop_ids(model.generation_config, tokenizer)
    return written.endswith(tuple(tokenizer.convert_ids_to_tokens(ids)))


def fitting(tokenizer, history: list[dict], most: float) -> tuple[list[dict], list[int], int, int]:
    """(`history` without the oldest turns that do not fit, its ids, at most `most`, exchanges forgotten, tokens truncated).

    A question is dropped together with its answer; a system turn is kept. A last question that is too long is truncated
    on the left.
    """
    from data_prep.tokens.chat_encoder import encode_prompts

    first = 1 if history[0]["role"] == "system" else 0
    forgotten = 0
    while True:
        (ids,) = encode_prompts(tokenizer, [history])
        if len(ids) <= most or len(history) <= first + 1:
            break
        history = history[:first] + history[first + 2 :]
        forgotten += 1
    truncated = max(0, len(ids) - most)
    return history, ids[truncated:], forgotten, truncated


def fake_dialogue_ids(
    tokenizer, exchanges: list[tuple[str, str]], message: str, most: float, language: str
) -> tuple[list[int], int, int]:
    """(ids of a document that looks like a conversation, at most `most`, exchanges forgotten, tokens truncated)."""
    from data_prep.tokens.chat_encoder import encode_text

    invented, real, forgotten = list(FAKE_DIALOGUE[language]), list(exchanges), 0
    while True:
        turns = "".join(f"{QUESTION} {asked}\n{ANSWER} {answered}\n\n" for asked, answered in [*invented, *real])
        ids = encode_text(tokenizer, f"{turns}{QUESTION} {message}\n{ANSWER}")
        if len(ids) <= most or not (real or invented):
            truncated = max(0, len(ids) - most)
            return ids[truncated:], forgotten, truncated
        forgotten += bool(real)
        (real or invented).pop(0)


def generation_settings(model, tokenizer, temperature: float, max_new_tokens: int):
    """The GenerationConfig of an answer: nothing that the sampling is not asked for, and no token that is padding."""
    from transformers import GenerationConfig

    from data_prep.models.generation import stop_token_ids

    end = stop_token_ids(model.generation_config, tokenizer)
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        use_cache=True,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=end,
        pad_token_id=end[0] if pad is None else pad,
        suppress_tokens=[pad] if pad is not None and pad not in end else None,
    )


class Checkpoint:
    """A folder's or the Hub's model in this process. `kind` is "chat" for one that answers, "base" for one that continues."""

    def __init__(self, name: str) -> None:
        from data_prep.models.loading import check_template, context_of, load_checkpoint

        self.name = name
        self.model, self.tokenizer = load_checkpoint(name)
        self.positions = context_of(self.model.config) or math.inf
        self.lock = threading.Lock()  # a model writes one answer at a time
        if self.tokenizer.chat_template is not None:
            check_template(self.tokenizer, name)
        self.kind = "chat" if is_chat_model(self.model, self.tokenizer) else "base"
        self.words = {"chat": "answers", "base": "base model, continues text"}[self.kind]
        # The first call is slow, whatever it is: libraries are imported, memory is laid out.
        self.answer([], "?", Options(0.0, 1), threading.Event(), lambda text: None)

    def answer(
        self,
        exchanges: list[tuple[str, str]],
        message: str,
        options: Options,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> Said:
        """Answer, or continue, a message after `exchanges`, [(message, answer)]; `tell` is given the text after every token."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList
        from transformers.generation.streamers import BaseStreamer

        from data_prep.models.batched_generate import given_settings_alone
        from data_prep.tokens.generation_prompt import head_of_answers, without_head

        ids, forgotten, truncated = self._prompt(exchanges, message, options)
        dialogue, tokenizer, written = self.kind == "base" and options.fake_dialogue, self.tokenizer, []
        head = head_of_answers(tokenizer) if self.kind == "chat" else []

        def text() -> str:
            said = tokenizer.decode(without_head(written, head), skip_special_tokens=True)
            if dialogue:
                said = said.partition(f"\n{QUESTION}")[0].strip()
            return said.removesuffix("\ufffd")  # half of a character, whose other half comes with the next token

        class Streamer(BaseStreamer):
            prompt = True  # comes first

            def put(self, value) -> None:
                if not self.prompt:
                    written.extend(value.tolist())
                    tell(text())
                self.prompt = False

            def end(self) -> None:
                pass

        def asks_itself() -> bool:
            return bool(dialogue) and f"\n{QUESTION}" in tokenizer.decode(written, skip_special_tokens=True)

        class Stopped(StoppingCriteria):
            def __call__(self, input_ids, scores, **_):
                return torch.full((len(input_ids),), stop.is_set() or asks_itself(), device=input_ids.device)

        settings = generation_settings(self.model, tokenizer, options.temperature, options.max_new_tokens)
        inputs = torch.tensor([ids], device=self.model.device)
        with self.lock, given_settings_alone(self.model):
            self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=settings,
                streamer=Streamer(),
                stopping_criteria=StoppingCriteriaList([Stopped()]),
            )
        ended = bool(written) and (written[-1] in settings.eos_token_id or asks_itself())
        return Said(text(), ended, len(written), tokenizer.decode(ids), forgotten, truncated)

    def _prompt(self, exchanges: list[tuple[str, str]], message: str, options: Options) -> tuple[list[int], int, int]:
        from data_prep.tokens.chat_encoder import encode_text

        most = self.positions - options.max_new_tokens
        if self.kind == "chat":
            _, *fitted = fitting(self.tokenizer, as_messages(exchanges, message, options.system), most)
            return tuple(fitted)
        if options.fake_dialogue:
            return fake_dialogue_ids(self.tokenizer, exchanges, message, most, options.fake_dialogue)
        ids = encode_text(self.tokenizer, message)
        truncated = max(0, len(ids) - most)
        return ids[truncated:], 0, truncated


class Remote:
    """A model behind an address with OpenAI's interface."""

    kind = "server"
    positions = None

    def __init__(self, name: str, url: str, model: str | None, key: str) -> None:
        """`name` is what the page calls it, "" for the model's own; without `model` it is the only one listed there."""
        self.server = Server(url, model or "", key, 0.0, 0, 0, timeout=PATIENCE, retries=0)
        if model is None:
            names = self.server._replace(timeout=10.0).models()
            if len(names) > 1:
                raise InputError(f"--url {url}: found the models {', '.join(names)[:300]}; name one with --url_model")
            self.server = self.server._replace(model=names[0])
        self.name = name or self.server.model

    def answer(
        self,
        exchanges: list[tuple[str, str]],
        message: str,
        options: Options,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> Said:
        """As `Checkpoint.answer`; the server decides what no longer fits."""
        server = self.server._replace(
            temperature=options.temperature, max_new_tokens=options.max_new_tokens, seed=random.randrange(1 << 31)
        )
        text, finish = "", None
        for piece, reason in server.stream(as_messages(exchanges, message, options.system)):
            text, finish = text + piece, reason or finish
            tell(text)
            if stop.is_set():
                break
        return Said(text, finish == "stop", None, "")


def as_messages(exchanges: list[tuple[str, str]], message: str, system: str) -> list[dict]:
    """A conversation as messages, up to the user's last one."""
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": message}]
