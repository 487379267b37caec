"""CHATENC"""

import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.common.errors import InputError


class Encoded(NamedTuple):
    """A conversation as tokens: their ids, and which of them enter the loss; both of the same length."""

    ids: np.ndarray  # int32
    mask: np.ndarray  # bool


class Rendered(NamedTuple):
    """A conversation as the text that the template makes of it."""

    text: str
    spans: list[tuple[int, int]]  # (begin, end) of what enters the loss, in characters
    meant: dict[str, str]  # {character: the control token it stands in for, which a turn spells out}


class ChatEncoder:
    """A tokenizer and its chat template, made ready to encode many conversations."""

    def __init__(self, tokenizer, assistant_only: bool = True) -> None:
        """Without `assistant_only` every token enters the loss. Raises InputError for a template without marks."""
        self.template = tokenizer.get_chat_template()
        self.assistant_only = assistant_only
        if assistant_only and not re.search(r"\{%-?\s*generation\s*-?%\}", self.template):
            self.template = _marked_template(tokenizer)
        self._names = tokenizer.special_tokens_map
        # Copies: their settings are not those that another user of the tokenizer leaves behind.
        self._tokenizer, self._literal = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        for copy in (self._tokenizer, self._literal):
            copy.no_truncation()
            copy.no_padding()
        self._tokenizer.encode_special_tokens = False
        self._literal.encode_special_tokens = True  # control tokens are text to this one
        self._special = special_token_text(tokenizer)

    def render(self, conversations: list[list[dict]], add_generation_prompt: bool = False) -> list[Rendered]:
        """The conversations as texts, or with `add_generation_prompt` up to where the assistant's next turn begins.

        Raises what the template raises; not to be called from two threads at once.
        """
        hidden, meant = [], []
        for messages in conversations:
            names = list(dict.fromkeys(self.special_text(messages)))
            if names:  # a character stands in for each of them while the template is at work
                used = {char for message in messages for char in message["content"]}
                free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)  # a private use area
                stand_ins = dict(zip(names, free, strict=False))
                messages = [{**message, "content": self._hide(message["content"], stand_ins)} for message in messages]
                names = {char: name for name, char in stand_ins.items()}
            hidden.append(messages)
            meant.append(names or {})
        texts, spans = render_jinja_template(
            conversations=hidden,
            chat_template=self.template,
            return_assistant_tokens_mask=self.assistant_only,
            add_generation_prompt=add_generation_prompt,
            **self._names,
        )
        if not self.assistant_only:
            spans = [[(0, len(text))] for text in texts]
        return [Rendered(*each) for each in zip(texts, spans, meant, strict=True)]

    def special_text(self, messages: list[dict]) -> list[str]:
        """The control tokens that are spelled out in the messages' texts."""
        return [found for message in messages for found in self._special.findall(message["content"])]

    def _hide(self, content: str, stand_ins: dict[str, str]) -> str:
        return self._special.sub(lambda match: stand_ins[match[0]], content)

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """The tokens of each conversation, and which enter the loss. The work is done outside of Python's lock."""
        plain = [each for each in rendered if not each.meant]
        encodings = iter(self._tokenizer.encode_batch([each.text for each in plain], add_special_tokens=False))
        return [
            self._encode_pieces(each) if each.meant else _encoded(next(encodings), each.spans) for each in rendered
        ]

    def _encode_pieces(self, rendered: Rendered) -> Encoded:
        """A conversation that spells out control tokens: the text between them, and they themselves as text."""
        text, spans, meant = rendered
        pieces, start = [], 0
        for piece in re.split(f"([{''.join(meant)}])", text):
            end = start + len(piece)
            inside = [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]
            if piece in meant:
                spelled = meant[piece]
                pieces.append(_encode_piece(self._literal, spelled, [(0, len(spelled))] if inside else [], start > 0))
            elif piece:
                pieces.append(_encode_piece(self._tokenizer, piece, inside, start > 0))
            start = end
        return Encoded(*map(np.concatenate, zip(*pieces, strict=True)))


def special_token_text(tokenizer) -> re.Pattern:
    """What finds the tokenizer's control tokens where a text spells them out."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # The longest first: one may begin with another.
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


def _encode_piece(tokenizer: Tokenizer, piece: str, spans: list[tuple[int, int]], inner: bool) -> Encoded:
    """A part of a text. Some tokenizers put a blank before a text: an inner part is encoded behind a line break, which
    is taken off again, where it stays a token of its own."""
    if inner:
        behind = tokenizer.encode("\n" + piece, add_special_tokens=False)
        length = sum(end <= 1 for _, end in behind.offsets)
        if length == len(behind.ids) or behind.offsets[length][0] == 1:
            ids, mask = _encoded(behind, [(begin + 1, end + 1) for begin, end in spans])
            return Encoded(ids[length:], mask[length:])
    return _encoded(tokenizer.encode(piece, add_special_tokens=False), spans)


def _encoded(encoding, spans: list[tuple[int, int]]) -> Encoded:
    return Encoded(np.array(encoding.ids, dtype=np.int32), _mask(encoding, spans))


def _marked_template(tokenizer) -> str:
    """The template that TRL has, with marks, in place of the one of a common model."""
    from trl.chat_template_utils import get_training_chat_template  # slow to import

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        raise InputError("the chat template does not enclose the assistant's turns in {% generation %}, so that the loss "
                         "cannot be on them alone; expected these marks, or assistant_only_loss: false") from None  # fmt: skip


def _mask(encoding, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens lie in the character `spans`: as `apply_chat_template(return_assistant_tokens_mask=True)` has it.

    But of a last character that is several tokens all are in, where transformers takes the first alone.
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


def encode_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """The ids of each conversation, up to where the assistant's turn begins; see `encode_conversations`."""
    return encode_conversations(tokenizer, prompts, add_generation_prompt=True)


def encode_conversations(
    tokenizer, conversations: list[list[dict]], add_generation_prompt: bool = False
) -> list[list[int]]:
    """The ids that the chat template makes of each conversation.

    As in training (data_prep/tokens/sft_dataset.py) what is typed stays text: "<|endoftext|>" in a turn is characters.
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
