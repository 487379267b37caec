"""What the recipes will do with rows that are longer than the context, and which context would take more of them."""

from collections import Counter

import numpy as np

from data_prep.checking.rows import Size
from data_prep.common.text import counted

LONGER = 4  # contexts that are tried: the next powers of two


class Context:
    """Lengths of the rows that are kept, by kind, against `max_length` tokens (None: there is no limit)."""

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length
        self.lengths: dict[str, bytearray] = {}  # {kind: 4 bytes a row}
        self.prompts: Counter = Counter()

    def add(self, kind: str, size: Size) -> None:
        self.lengths.setdefault(kind, bytearray()).extend(np.uint32(size.length).tobytes())
        self.prompts["longest"] = max(self.prompts["longest"], size.prompt)
        self.prompts["without_room"] += self.max_length is not None and size.prompt >= self.max_length

    def all_lengths(self) -> bytearray:
        return bytearray().join(self.lengths.values())

    def report(self) -> dict | None:
        """For check.json: of each kind that there is how many rows, how many too long, and what longer contexts take whole.

        "prompts": the tokens of the longest, and how many leave no room for an answer. None without a limit.
        """
        if self.max_length is None:
            return None
        found: dict = {"max_length": self.max_length}
        for kind, numbers in self.lengths.items():
            values = np.frombuffer(numbers, np.uint32)
            long = int((values > self.max_length).sum())
            found[kind] = {"rows": len(values), "long": long, "would_take": would_take(values, self.max_length)}
        return {**found, "prompts": {key: self.prompts[key] for key in ("longest", "without_room")}}


def would_take(lengths: np.ndarray, max_length: int) -> list[dict]:
    """[{"max_length", "rows": those that it takes whole}] for the next powers of two, until all rows are taken."""
    tried, longer = [], 1 << max_length.bit_length()
    while len(lengths) and lengths.max() > max_length and len(tried) < LONGER:
        tried.append({"max_length": longer, "rows": int((lengths <= longer).sum())})
        if tried[-1]["rows"] == len(lengths):
            break
        longer *= 2
    return tried


def context_sentences(context: dict | None, share) -> list[str]:
    """The report in words, a sentence for each kind of row; `share(part, whole)` writes a share in percent."""
    if context is None:
        return []
    limit, said = context["max_length"], []
    for kind, fate in (
        ("conversations", "which recipes/sft.py truncates (or, by long, drops or splits)"),
        (
            "preferences",
            "by one answer or more: recipes/reward.py leaves such a ranking out, dpo.py its pairs with the answer, kto.py "
            "the answer",
        ),
    ):
        found = context.get(kind)
        if found and found["long"]:
            kept = [f"{each['max_length']:,} {share(each['rows'], found['rows'])}" for each in found["would_take"]]
            said.append(
                f"beyond {limit:,} tokens: {found['long']:,} of {counted(found['rows'], kind[:-1])}, {fate}; "
                f"n_positions (and max_length) {' would keep '.join(kept[0].split(' ', 1))} whole"
                + "".join(f", {each}" for each in kept[1:])
            )
        elif found:
            said.append(f"beyond {limit:,} tokens: none of {counted(found['rows'], kind[:-1])}")
    prompts = context["prompts"]
    if prompts["without_room"]:
        noun = "prompt leaves" if prompts["without_room"] == 1 else "prompts leave"
        said.append(
            f"{prompts['without_room']:,} {noun} no room for an answer (the longest has {prompts['longest']:,} tokens): "
            "too long for recipes/ppo.py, rloo.py and grpo.py"
        )
    elif prompts["longest"]:
        said.append(
            f"the longest prompt has {prompts['longest']:,} tokens: {limit - prompts['longest']:,} are left for an answer "
            "(response_length of recipes/ppo.py, max_completion_length of rloo.py and grpo.py)"
        )
    return said
