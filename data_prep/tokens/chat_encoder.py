"""Encode conversations with the tokenizer's chat template, and mark the tokens that enter the loss.

    messages   user "Hi", assistant "Yo"
    text       <|user|>Hi<|end|><|assistant|>[Yo<|end|>]            render: the template encloses in {% generation %} what
                                                                    a model learns to say; its span is characters 30 to 39
    tokens     <|user|>  H   i   <|end|>  <|assistant|>   Y   o   <|end|>
    ids           4      45  78     2           5         62  84     2
    mask          0       0   0     0           0          1   1     1          loss_mask: the tokens inside the spans
    labels      -100   -100 -100  -100        -100        62  84     2          labels: the ids, or -100 outside the mask

The end of the assistant's turn is in the loss: it teaches the model to stop. What a user typed stays text: "<|end|>" inside
a turn is encoded as ordinary characters, as `apply_chat_template(sanitize_control_tokens=True)` of transformers does it.
Only the control tokens that the template itself writes are control tokens.

Tools stand in the first message ("tools"), calls in the assistant's ("tool_calls"): they go to the template as transformers
passes them. The calls are in the loss, the tools and their results are not. A template without marks that writes an
assistant's turn the same whatever follows needs none: the turn is what comes after `add_generation_prompt`.
"""

import json
import re
from collections.abc import Iterator
from os.path import commonprefix
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.common.errors import InputError
from data_prep.common.reasoning import BLOCK, REASONING, block, reasoning_of
from data_prep.common.text import shorten
from data_prep.tokens.control_tokens import ControlTokens

IGNORED = -100  # the label that the loss ignores (ignore_index of torch's cross entropy)
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
TAGS = re.compile(r"</?(?:think|tool)\w*>")  # written in turns, not around them
TOOL_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)


ANSWER = "Bonjour"  # no part of what templates write around it
EXCHANGE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]


class Encoded(NamedTuple):
    """A conversation as tokens."""

    ids: np.ndarray  # int32, (tokens,)
    mask: np.ndarray  # bool, (tokens,): whether the token enters the loss


class Rendered(NamedTuple):
    """A conversation as the text that the template makes of it."""

    text: str
    spans: list[tuple[int, int]]  # (begin, end) of the parts that enter the loss, in characters
    stand_ins: dict[str, str]  # {character: the control token that it replaces, which somebody typed in a turn}
    lost: int = 0  # turns whose reasoning the template left out


class NotRendered(InputError):
    """A conversation that the chat template refuses; `reason` is what it says."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unmarked(InputError):
    """A chat template in which the assistant's turns cannot be found."""


class ChatEncoder:
    """A tokenizer with its chat template, prepared to encode many conversations."""

    def __init__(self, tokenizer, assistant_only: bool = True, reasoning: str = "keep") -> None:
        """`assistant_only=False`: every token enters the loss. `reasoning="mask"` keeps reasoning out of it. Raises
        Unmarked for a template whose assistant's turns cannot be found."""
        if reasoning not in REASONING:
            raise InputError(f"reasoning is {reasoning!r}; expected {', '.join(REASONING)}")
        if reasoning == "mask" and not assistant_only:
            raise InputError(
                "reasoning: mask needs a loss on the assistant's turns alone; give assistant_only_loss: true"
            )
        self.assistant_only, self.mask_reasoning = assistant_only, reasoning == "mask"
        # {whether tools are used: template}: a tokenizer may have one of its own for tools (Hermes).
        self._templates = {tools: template_of(tokenizer, tools) for tools in (False, True)}
        if assistant_only:
            self._templates = {key: _with_marks(tokenizer, each) for key, each in self._templates.items()}
        self._names = tokenizer.special_tokens_map
        # {template: what its marks enclose that stands in the prompt already}
        self._given = {
            each: _given_by_prompt(each, self._names) for each in self._templates.values() if assistant_only
        }
        # Copies: settings that others change on the tokenizer do not matter here.
        self._tokenizer, self._literal = (
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            _literal_copy(tokenizer),
        )
        for copy in (self._tokenizer, self._literal):
            copy.no_truncation()
            copy.no_padding()
            copy.post_processor = None  # it may trim offsets: a blank at the border of an answer would be lost
        self._tokenizer.encode_special_tokens = False
        self._special = special_token_text(tokenizer)
        self._control = ControlTokens(tokenizer, self._special)

    def render(self, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[Rendered]:
        """The conversations as texts. With `add_generation_prompt` each ends where the assistant's next turn begins.

        Raises NotRendered for a conversation that the template refuses. Not thread-safe.
        """
        hidden, stand_ins = [], []
        for messages in conversations:
            typed = list(dict.fromkeys(self.special_text(messages)))
            character_of: dict[str, str] = {}
            if typed:  # a character stands in for each of them while the template is rendered
                used = {char for message in messages for text in texts_of(message) for char in text}
                free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)  # a private use area
                character_of = dict(zip(typed, free, strict=False))
                messages = [
                    {key: each if key == "role" else self._hide(each, character_of) for key, each in message.items()}
                    for message in messages
                ]
            hidden.append(messages)
            stand_ins.append({char: token for token, char in character_of.items()})
        texts, spans = self._render(hidden, add_generation_prompt)
        rendered = zip(hidden, texts, spans, stand_ins, strict=True)
        return [self._finished(messages, Rendered(*each)) for messages, *each in rendered]

    def _render(self, conversations: list[list[dict]], add_generation_prompt: bool) -> tuple[list, list]:
        """The texts of conversations, and the spans of each that enter the loss."""
        texts: list[str] = [""] * len(conversations)
        spans: list[list[tuple[int, int]]] = [[] for _ in conversations]
        groups: dict[tuple, list[int]] = {}  # those that one call can render
        prepared = []
        for index, messages in enumerate(conversations):
            template = self._templates[uses_tools(messages)]
            messages, tools = template_input(messages, template)
            prepared.append(messages)
            groups.setdefault((template, index if tools else None), []).append(index)
        for (template, _), indices in groups.items():
            marked = self.assistant_only and bool(MARKS.search(template))
            group = [prepared[index] for index in indices]
            options = {"chat_template": template, "tools": conversations[indices[0]][0].get("tools"), **self._names}
            try:
                rendered, found = render_jinja_template(
                    conversations=group,
                    return_assistant_tokens_mask=marked,
                    add_generation_prompt=add_generation_prompt,
                    **options,
                )
                if marked and (given := self._given[template]):
                    found = [
                        [
                            (begin + len(given) if text.startswith(given, begin, end) else begin, end)
                            for begin, end in spans_of
                        ]
                        for text, spans_of in zip(rendered, found, strict=True)
                    ]
                elif not marked:
                    found = [
                        _spans_by_prefix(text, messages, options) if self.assistant_only else [(0, len(text))]
                        for text, messages in zip(rendered, group, strict=True)
                    ]
            except (TemplateError, TypeError, RecursionError) as error:
                if len(indices) > 1:  # find the one
                    one_by_one = [self._render([conversations[index]], add_generation_prompt) for index in indices]
                    rendered, found = ([each[part][0] for each in one_by_one] for part in (0, 1))
                else:
                    raise _not_rendered(group[0], error) from None
            for index, text, each in zip(indices, rendered, found, strict=True):
                texts[index], spans[index] = text, each
        return texts, spans

    def _finished(self, messages: list[dict], rendered: Rendered) -> Rendered:
        """With what became of the conversation's reasoning, and without it in the spans if it is masked."""
        blocks = [reasoning for message in messages if (reasoning := reasoning_of(message))]
        if not blocks:
            return rendered
        lost = sum(reasoning not in rendered.text for reasoning in blocks)
        spans = rendered.spans
        if self.mask_reasoning:
            found = {begin: BLOCK.match(rendered.text, begin, end) for begin, end in spans}
            masked = {begin: each.end() for begin, each in found.items() if each and each[1].strip()}
            if len(masked) < len(blocks) - lost:
                raise InputError(
                    "reasoning: mask needs a chat template that writes reasoning as <think>…</think> at the head of the "
                    f"assistant's turn; this one does not for {shorten(blocks[0])}. Use keep or drop"
                )
            spans = [(masked.get(begin, begin), end) for begin, end in spans]
        return rendered._replace(spans=spans, lost=lost)

    def special_text(self, messages: list[dict]) -> list[str]:
        """The control tokens that somebody typed in the messages' texts, in order."""
        texts = (text for each in messages for text in (texts_of(each) if len(each) > 2 else (each["content"],)))
        return [found for text in texts for found in self._special.findall(text)]

    def _hide(self, value, character_of: dict[str, str]):
        """A text, or whatever holds texts, with the characters that stand in for control tokens."""
        if isinstance(value, str):
            return self._special.sub(lambda match: character_of[match[0]], value)
        if isinstance(value, dict):
            return {self._hide(key, character_of): self._hide(each, character_of) for key, each in value.items()}
        return [self._hide(each, character_of) for each in value] if isinstance(value, list) else value

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """The tokens of each conversation, with its mask. Releases the GIL while `tokenizers` works."""
        found = [self._encode_pieces(each) if each.stand_ins else None for each in rendered]
        counted = {
            index: borders
            for index, each in enumerate(rendered)
            if found[index] is None and (borders := self._control.counted(each.text, each.spans))
        }
        texts = [rendered[index].text for index in counted]
        for index, encoding in zip(
            counted, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            ids = np.array(encoding.ids, dtype=np.int32)
            if (mask := self._control.mask(ids, counted[index])) is not None:
                found[index] = Encoded(ids, mask)
        rest = [index for index, each in enumerate(found) if each is None]
        texts = [rendered[index].text for index in rest]
        for index, encoding in zip(rest, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            found[index] = with_mask(encoding, rendered[index].spans)
        return found

    def _encode_pieces(self, rendered: Rendered) -> Encoded:
        """A conversation with typed control tokens: each of them is encoded as text, apart from the text around it."""
        text, spans, stand_ins, _ = rendered
        pieces, start = [], 0
        for piece in re.split(f"([{''.join(stand_ins)}])", text):
            end = start + len(piece)
            inside = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
            if piece in stand_ins:
                typed = stand_ins[piece]
                pieces.append(_encode_piece(self._literal, typed, [(0, len(typed))] if inside else [], start > 0))
            elif piece:
                pieces.append(_encode_piece(self._tokenizer, piece, inside, start > 0))
            start = end
        return Encoded(*map(np.concatenate, zip(*pieces, strict=True)))


def with_mask(encoding, spans: list[tuple[int, int]]) -> Encoded:
    """The ids of a `tokenizers.Encoding` and their loss mask."""
    return Encoded(np.array(encoding.ids, dtype=np.int32), loss_mask(encoding, spans))


def loss_mask(encoding, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens of a `tokenizers.Encoding` lie in the character `spans`, as booleans: (tokens,).

    As `apply_chat_template(return_assistant_tokens_mask=True)`, with one difference: if the last character of a span is
    several tokens, all of them are in the mask, and not the first alone.
    """
    mask = np.zeros(len(encoding.ids), dtype=bool)
    for begin, end in spans:
        # A character of no token, such as a blank that the tokenizer strips, is passed over.
        tokens = map(encoding.char_to_token, range(begin, end))
        first = next((token for token in tokens if token is not None), None)
        if first is not None:
            backwards = map(encoding.char_to_token, range(end - 1, begin - 1, -1))
            last = next(token for token in backwards if token is not None)
            while last + 1 < len(mask) and encoding.token_to_chars(last + 1)[0] < end:
                last += 1
            mask[first : last + 1] = True
    return mask


def labels(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The labels of tokens: their ids, or -100, which the loss ignores, outside the mask."""
    return np.where(mask, ids, np.int32(IGNORED))


def special_token_text(tokenizer) -> re.Pattern:
    """A pattern that finds the tokenizer's control tokens typed in a text."""
    return _any_of(_special(tokenizer) | role_tokens(tokenizer))


def role_tokens(tokenizer) -> set[str]:
    """Control tokens that the tokenizer has as ordinary added tokens: what the chat template writes around the turns, but
    for tags (`TAGS`), which belong to an answer. DeepSeek's <｜User｜> and <｜Assistant｜> are such."""
    others = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special}
    others = {each for each in others if each.strip() and not TAGS.fullmatch(each)}  # Gemma has line breaks
    if not others or tokenizer.chat_template is None:
        return set()
    template = template_of(tokenizer, tools=False)
    options = {"chat_template": template, "add_generation_prompt": True, **tokenizer.special_tokens_map}
    try:
        texts, _ = render_jinja_template([EXCHANGE, EXCHANGE[:1]], **options)
    except (TemplateError, TypeError, RecursionError):
        return set()
    return {each for each in others if any(each in text for text in texts)}


def _special(tokenizer) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def _any_of(tokens: set[str]) -> re.Pattern:
    # Longest first: one may begin with another.
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _literal_copy(tokenizer) -> Tokenizer:
    """A copy of the tokenizer to which control tokens are text."""
    backend, roles = json.loads(tokenizer.backend_tokenizer.to_str()), role_tokens(tokenizer)
    for token in backend["added_tokens"]:
        token["special"] |= token["content"] in roles
    copy = Tokenizer.from_str(json.dumps(backend))
    copy.encode_special_tokens = True
    return copy


def _encode_piece(tokenizer: Tokenizer, piece: str, spans: list[tuple[int, int]], inner: bool) -> Encoded:
    """A part of a text. Some tokenizers put a space before every text, so an inner part is encoded after a line break,
    which is removed again if it is a token of its own."""
    if inner:
        after = tokenizer.encode("\n" + piece, add_special_tokens=False)
        length = sum(end <= 1 for _, end in after.offsets)
        if length == len(after.ids) or after.offsets[length][0] == 1:
            ids, mask = with_mask(after, [(begin + 1, end + 1) for begin, end in spans])
            return Encoded(ids[length:], mask[length:])
    return with_mask(tokenizer.encode(piece, add_special_tokens=False), spans)


def template_of(tokenizer, tools: bool) -> str:
    """The tokenizer's chat template, for conversations with or without tools."""
    return tokenizer.get_chat_template(tools=[{}] if tools else None)


def _not_rendered(messages: list[dict], error: Exception) -> NotRendered:
    """The error of a conversation that the template refuses: one with a system turn, or two turns of one speaker, say."""
    first = next((each["content"] for each in messages if each["role"] == "user"), "")
    message = f"the chat template cannot render the conversation that begins with {shorten(first)}: {error}"
    return NotRendered(message, str(error))


def uses_tools(messages: list[dict]) -> bool:
    """Whether there are tools, calls or results in a conversation."""
    return any(message["role"] == "tool" or "tool_calls" in message or "tools" in message for message in messages)


def texts_of(message: dict) -> Iterator[str]:
    """All texts in a message: its content, and those in its tools, calls and reasoning."""
    waiting = [value for key, value in message.items() if key != "role"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            waiting += [*value, *value.values()] if isinstance(value, dict) else value


def template_input(messages: list[dict], template: str) -> tuple[list[dict], list[dict] | None]:
    """The messages and the tools as they are given to the template. Reasoning in a field that the template does not know
    goes before the text; the tags around a tool's result (Hermes) are removed if the template writes them itself."""
    if all(len(message) == 2 and message["role"] != "tool" for message in messages):
        return messages, None
    own = "reasoning_content" in template or "message.thinking" in template
    prepared = []
    for message in messages:
        each = {key: value for key, value in message.items() if key != "tools"}
        if "reasoning_content" in each and not own:
            each["content"] = block(each.pop("reasoning_content")) + each["content"]
        if (
            each["role"] == "tool"
            and "<tool_response>" in template
            and (found := TOOL_RESPONSE.fullmatch(each["content"]))
        ):
            each["content"] = found[1]
        prepared.append(each)
    return prepared, messages[0].get("tools")


def _with_marks(tokenizer, template: str) -> str:
    """The template, or TRL's copy with marks if it is that of a common model. Without marks the template must at least say
    where an assistant's turn begins."""
    if MARKS.search(template):
        return template
    if template == tokenizer.chat_template:
        from trl.chat_template_utils import get_training_chat_template  # slow to import

        try:
            return get_training_chat_template(tokenizer)
        except ValueError:  # TRL does not know it
            pass
    if "add_generation_prompt" not in template:
        raise Unmarked(
            "the chat template does not enclose the assistant's turns in {% generation %}, so the loss cannot be on them "
            "alone; expected these marks, or assistant_only_loss: false"
        )
    return template


def _given_by_prompt(template: str, names: dict) -> str:
    """What marks enclose at the head of a turn though generation is given it: the line break behind Qwen2.5's assistant, the
    whole <|start|>assistant of gpt-oss. Up to <think>, which belongs to the reasoning."""
    if not MARKS.search(template):
        return ""
    options = {"chat_template": template, **names}
    try:
        (prompt,), _ = render_jinja_template([EXCHANGE[:1]], add_generation_prompt=True, **options)
        (whole,), (spans,) = render_jinja_template([EXCHANGE], return_assistant_tokens_mask=True, **options)
    except (TemplateError, TypeError, RecursionError):  # one that cannot render so short a conversation
        return ""
    begin = spans[0][0] if spans else len(whole)
    if whole[:begin] != prompt[:begin]:
        return ""
    return commonprefix([whole[begin:], prompt[begin:]]).partition("<think>")[0]


def training_template(tokenizer) -> str | None:
    """TRL's copy of the tokenizer's chat template, where it writes the turns before a question in another way; else None.

    Qwen3's own template drops what stood in <think> at the head of earlier answers; the copy, which `ChatEncoder` encodes
    by, keeps it. Raises InputError for a template whose assistant's turns cannot be found.
    """
    own = template_of(tokenizer, tools=False)
    copy = _with_marks(tokenizer, own)
    if copy == own:
        return None
    options = {
        "conversations": [[*EXCHANGE, EXCHANGE[0]]],
        "add_generation_prompt": True,
        **tokenizer.special_tokens_map,
    }
    try:
        texts = [render_jinja_template(chat_template=each, **options)[0] for each in (own, copy)]
    except (TemplateError, TypeError, RecursionError) as error:
        raise _not_rendered(EXCHANGE, error) from None
    return copy if texts[0] != texts[1] else None


def _spans_by_prefix(text: str, messages: list[dict], options: dict) -> list[tuple[int, int]]:
    """The assistant's turns in the text of a template without marks: what each adds to the turns before it, after
    `add_generation_prompt`. Raises InputError if the text does not grow turn by turn."""
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            (before,), _ = render_jinja_template(
                conversations=[messages[:index]], add_generation_prompt=True, **options
            )
            (after,), _ = render_jinja_template(conversations=[messages[: index + 1]], **options)
            if not (len(before) < len(after) and text.startswith(before) and text.startswith(after)):
                raise InputError(
                    "the chat template does not enclose the assistant's turns in {% generation %}, and it writes "
                    f"{shorten(message['content'])} in another way when turns follow, so the loss cannot be on it alone; "
                    "expected these marks, or assistant_only_loss: false"
                )
            spans.append((len(before), len(after)))
    return spans


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """The ids of each conversation up to where the assistant's turn begins; see `encode_conversations`."""
    return encode_conversations(tokenizer, prompts, add_generation_prompt=True)


def encode_conversations(
    tokenizer, conversations: list[list[dict]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """The ids of each conversation, by the chat template. As in training, typed control tokens stay text.

    Raises NotRendered for a conversation that the template refuses.
    """
    rendered = [as_text(tokenizer, conversation, add_generation_prompt) for conversation in conversations]
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    special = special_token_text(tokenizer)
    typed = [
        index
        for index, messages in enumerate(conversations)
        if any(special.search(text) for message in messages for text in texts_of(message))
    ]
    if typed:  # the encoder copies the tokenizer, which takes time: not done if nobody typed a control token
        encoder = ChatEncoder(tokenizer, assistant_only=False)
        again = encoder.render([conversations[index] for index in typed], add_generation_prompt)
        for index, (ids, _) in zip(typed, encoder.encode(again), strict=True):
            encoded[index] = ids.tolist()
    return encoded


def as_text(tokenizer, conversation: list[dict], add_generation_prompt: bool = False) -> str:
    """The text that the chat template makes of a conversation. Raises NotRendered for one that it refuses."""
    template = template_of(tokenizer, uses_tools(conversation))
    messages, tools = template_input(conversation, template)
    options = {"chat_template": template, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except (TemplateError, TypeError, RecursionError) as error:
        raise _not_rendered(messages, error) from None


def encode_text(tokenizer, text: str) -> list[int]:
    """The ids of a text that is not a conversation; control tokens typed in it stay text."""
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def end_of_turn(tokenizer) -> str | None:
    """The special token that closes an assistant's turn in the tokenizer's chat template, the first after its text, or None.

    Nothing is encoded: a ChatEncoder copies the tokenizer, which takes seconds for a large vocabulary. Raises InputError for
    a template whose assistant's turns cannot be found.
    """
    template = _with_marks(tokenizer, template_of(tokenizer, tools=False))
    options = {"chat_template": template, **tokenizer.special_tokens_map}
    marked = bool(MARKS.search(template))
    try:
        (text,), found = render_jinja_template([EXCHANGE], return_assistant_tokens_mask=marked, **options)
        spans = found[0] if marked else _spans_by_prefix(text, EXCHANGE, options)
    except (TemplateError, TypeError, RecursionError) as error:
        raise _not_rendered(EXCHANGE, error) from None
    # Not by the tokenizer's named special tokens alone: Gemma 3 does not name its end of turn.
    # The first: behind it others may end the whole conversation, as Phi-3's <|endoftext|>.
    _, _, behind = "".join(text[begin:end] for begin, end in spans).rpartition(ANSWER)
    found = _any_of(_special(tokenizer)).search(behind)
    return found[0] if found else None


def answer_end(tokenizer) -> tuple[int | None, bool]:
    """(the id of the special token that an answer ends with, whether the chat template writes it behind the last answer).

    It is the first behind the answer, whether it is in the loss or not. A template such as GLM-4's writes none there: an
    answer ends where the next turn begins, or, without a token there either, at the end of sequence. (None, False) for a
    template that cannot write an exchange of a question and an answer, and where there is no end of sequence.
    """
    special, template = special_token_text(tokenizer), template_of(tokenizer, tools=False)
    for conversation, written in ((EXCHANGE, True), ([*EXCHANGE, EXCHANGE[0]], False)):
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False, chat_template=template)
        except (TemplateError, TypeError, RecursionError):
            return None, False
        if found := special.search(text.rpartition(ANSWER)[2]):
            return tokenizer.convert_tokens_to_ids(found[0]), written
    return tokenizer.eos_token_id, False
