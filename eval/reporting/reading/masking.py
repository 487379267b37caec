"""One conversation as fine-tuning sees it: its tokens, and which of them carry loss."""

import itertools
from pathlib import Path

from data_prep.common.errors import InputError

MEASURED = 256  # conversations, whose tokens are counted for the mean
LONGEST = 120  # tokens of the one that is shown


def mask_example(folder: Path, conversations: Path) -> dict | None:
    """{"tokens": [(text, whether it carries loss), …], "learned", "total", "mean": tokens of a conversation, "measured"}.

    The conversation is the first of at most `LONGEST` tokens among the first `MEASURED` in the training data, encoded as
    recipes/sft.py does it. None without the data or a tokenizer that can encode it.

    Args:
        folder: of the fine-tuned model, for its tokenizer and chat template.
    """
    if not conversations.exists() or not (folder / "tokenizer_config.json").exists():
        return None
    from data_prep.models.loading import load_tokenizer  # slow to import
    from data_prep.readers.conversations import conversation_rows
    from data_prep.rows.bad_rows import BadRows
    from data_prep.rows.read import data_files
    from data_prep.tokens.chat_encoder import ChatEncoder

    try:
        tokenizer = load_tokenizer(folder)
        encoder = ChatEncoder(tokenizer)
        read = conversation_rows(data_files(str(conversations)), BadRows("error", None))
        rows = [row["messages"] for row in itertools.islice(read, MEASURED)]
        encoded = encoder.encode(encoder.render(rows))
    except InputError:
        return None
    if not encoded:
        return None
    one = next((each for each in encoded if len(each.ids) <= LONGEST), encoded[0])
    mean = sum(len(each.ids) for each in encoded) / len(encoded)
    share = sum(int(each.mask.sum()) for each in encoded) / sum(len(each.ids) for each in encoded)
    tokens = texts_of_tokens(tokenizer, one.ids.tolist(), one.mask.tolist())
    about = {"learned": int(one.mask.sum()), "total": len(one.ids), "mean": mean, "share": share}
    return {"tokens": tokens[:LONGEST], **about, "measured": len(encoded)}


def texts_of_tokens(tokenizer, ids: list[int], mask: list[bool]) -> list[tuple[str, bool]]:
    """[(text, whether it carries loss)]; tokens that only together are a character, as of Chinese, are one entry."""
    found, run = [], []
    for index, token in enumerate(ids):
        run.append(token)
        text = tokenizer.decode(run)
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or len(run) > 4
        if whole or index + 1 == len(ids) or mask[index + 1] != mask[index]:
            found.append((text, bool(mask[index])))
            run = []
    return found
