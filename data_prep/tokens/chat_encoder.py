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
"""

import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.common.errors import InputError

IGNORED = -100  # the label that the loss ignores (ignore_index of torch's cross entropy)


class Encoded(NamedTuple):
    """A conversation as tokens."""

    ids: np.ndarray  # int32, (tokens,)
    mask: np.ndarray  # bool, (tokens,): whether the token enters the loss


class Rendered(NamedTuple):
    """A conversation as the text that the template makes of it."""

    text: str
    spans: list[tuple[int, int]]  # (begin, end) of the parts that enter the loss, in characters
    stand_ins: dict[str, str]  # {character: the control token that it replaces, which somebody typed in a turn}


class ChatEncoder:
    """A tokenizer with its chat template, prepared to encode many conversations."""

    def __init__(self, tokenizer, assistant_only: bool = True) -> None:
        """`assistant_only=False`: every token enters the loss. Raises InputError for a template without marks."""
        self.template = tokenizer.get_chat_template()
        self.assistant_only = assistant_only
        if assistant_only and not re.search(r"\{%-?\s*generation\s*-?%\}", self.template):
            self.template = _marked_template(tokenizer)
        self._names = tokenizer.special_tokens_map
        # Copies: settings that others change on the tokenizer do not matter here.
        self._tokenizer, self._literal = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        for copy in (self._tokenizer, self._literal):
            copy.no_truncation()
            copy.no_padding()
        self._tokenizer.encode_special_tokens = False
        self._literal.encode_special_tokens = True  # control tokens are text to this one
        self._special = special_token_text(tokenizer)

    def render(self, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[Rendered]:
        """The conversations as texts. With `add_generation_prompt` each ends where the assistant's next turn begins.

        Raises what the template raises. Not thread-safe.
        """
        hidden, stand_ins = [], []
        for messages in conversations:
            typed = list(dict.fromkeys(self.special_text(messages)))
            character_of: dict[str, str] = {}
            if typed:  # a character stands in for each of them while the template is rendered
                used = {char for message in messages for char in message["content"]}
                free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)  # a private use area
                character_of = dict(zip(typed, free, strict=False))
                messages = [
                    {**message, "content": self._hide(message["content"], character_of)} for message in messages
                ]
            hidden.append(messages)
            stand_ins.append({char: token for token, char in character_of.items()})
        texts, spans = render_jinja_template(
            conversations=hidden,
            chat_template=self.template,
            return_assistant_tokens_mask=self.assistant_only,
            add_generation_prompt=add_generation_prompt,
            **self._names,
        )
        if not self.assistant_only:
            spans = [[(0, len(text))] for text in texts]
        return [Rendered(*each) for each in zip(texts, spans, stand_ins, strict=True)]

    def special_text(self, messages: list[dict]) -> list[str]:
        """The control tokens that somebody typed in the messages' texts, in order."""
        return [found for message in messages for found in self._special.findall(message["content"])]

    def _hide(self, content: str, character_of: dict[str, str]) -> str:
        return self._special.sub(lambda match: character_of[match[0]], content)

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """The tokens of each conversation, with its mask. Releases the GIL while `tokenizers` works."""
        plain = [each for each in rendered if not each.stand_ins]
        encodings = iter(self._tokenizer.encode_batch([each.text for each in plain], add_special_tokens=False))
        return [
            self._encode_pieces(each) if each.stand_ins else with_mask(next(encodings), each.spans)
            for each in rendered
        ]

    def _encode_pieces(self, rendered: Rendered) -> Encoded:
        """A conversation with typed control tokens: each of them is encoded as text, apart from the text around it."""
        text, spans, stand_ins = rendered
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
        if end > begin:
            first = encoding.char_to_token(begin)
            last = encoding.char_to_token(end - 1)
            if first is None:
                break
            last = len(mask) - 1 if last is None else last
            while last + 1 < len(mask) and encoding.token_to_chars(last + 1)[0] < end:
                last += 1
            mask[first : last + 1] = True
    return mask


def labels(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The labels of tokens: their ids, or -100, which the loss ignores, outside the mask."""
    return np.where(mask, ids, np.int32(IGNORED))


def special_token_text(tokenizer) -> re.Pattern:
    """A pattern that finds the tokenizer's control tokens typed in a text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # Longest first: one may begin with another.
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


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


def _marked_template(tokenizer) -> str:
    """TRL's copy, with marks, of the chat template of a common model."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        raise InputError(
            "the chat template does not enclose the assistant's turns in {% generation %}, so the loss cannot be on them "
            "alone; expected these marks, or assistant_only_loss: false"
        ) from None


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """The ids of each conversation up to where the assistant's turn begins; see `encode_conversations`."""
    return encode_conversations(tokenizer, prompts, add_generation_prompt=True)


def encode_conversations(
    tokenizer, conversations: list[list[dict]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """The ids of each conversation, by the chat template. As in training, typed control tokens stay text."""
    rendered = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
        for messages in conversations
    ]
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    special = special_token_text(tokenizer)
    typed = [
        index
        for index, messages in enumerate(conversations)
        if any(special.search(message["content"]) for message in messages)
    ]
    if typed:  # the encoder copies the tokenizer, which takes time: not done if nobody typed a control token
        encoder = ChatEncoder(tokenizer, assistant_only=False)
        again = encoder.render([conversations[index] for index in typed], add_generation_prompt)
        for index, (ids, _) in zip(typed, encoder.encode(again), strict=True):
            encoded[index] = ids.tolist()
    return encoded


def encode_text(tokenizer, text: str) -> list[int]:
    """The ids of a text that is not a conversation; control tokens typed in it stay text."""
    return tokenizer(text, split_special_tokens=True)["input_ids"]
