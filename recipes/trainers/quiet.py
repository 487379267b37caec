"""Warnings of the libraries that are untrue here, or meant for the libraries' own authors; tests/test_quiet.py shows it.

Each is dropped by its words, in the logger that says it: whatever else a library warns of stays on the screen.
"""

import logging
import re
import warnings


def drop(logger: str, pattern: str, unless: str = "$.") -> None:
    """Drop what `logger` says in words that the regular expression `pattern` matches, and `unless` does not."""

    def stays(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not re.search(pattern, text) or bool(re.search(unless, text))

    logging.getLogger(logger).addFilter(stays)


def renamed_in_transformers() -> None:
    """TRL 1.12 calls transformers' gradient checkpointing by its old names: nothing that a user could change."""
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_\w+)?` is deprecated", FutureWarning)


def new_head() -> None:
    """The score head of a model that had none is new, as transformers says: it is what the recipe trains."""
    # The report has a line for every name, "score.weight | MISSING |".
    other = r"(?m)^(?!score\.weight)\S+ *\| *[A-Z]{5,}"
    drop("transformers.modeling_utils", r"(?m)^score\.weight *\| *MISSING", unless=other)


def packed_apart(strategy: str | None, attention: str) -> None:
    """Samples packed whole do not see each other under sdpa and eager either, which read their positions.

    TRL names flash attention alone.
    """
    if strategy in ("bfd", "bfd_split") and attention in ("sdpa", "eager"):
        drop(
            "trl.trainer.sft_trainer",
            "^(.RANK 0. )?(You are using packing, but the attention|Padding-free training is)",
        )


def four_bit_kernels() -> None:
    """bitsandbytes, where it is installed, looks for kernels of 4-bit weights when it is imported, used or not."""
    drop("bitsandbytes.backends.cpu.ops", "^Failed to load CPU gemm_4bit_forward")
