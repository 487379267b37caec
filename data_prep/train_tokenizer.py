r"""Train a byte-level BPE tokenizer on a corpus, with the chat template inside.

    python -m data_prep.train_tokenizer --corpus runs/quickstart/data/corpus/*.jsonl \
        --vocab_size 4096 --output_dir runs/quickstart/tokenizer

Any Unicode text decodes unchanged: all 256 bytes are in the alphabet (GPT-2, Radford 2019, section 2.2), so there is no
unknown token. Padding, end of text and end of turn are three tokens: if the first and the last were one, a loss without
padding would be a loss without the end of turn, and the model would not learn to stop.
"""

import argparse
import importlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm

from data_prep.common.batches import batched_by_length
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, vacant
from data_prep.readers.documents import read_documents, reading_counts
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.read import data_files

END_OF_TEXT, PAD, END_OF_TURN = "<|endoftext|>", "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [END_OF_TEXT, PAD, END_OF_TURN, "<|system|>", "<|user|>", "<|assistant|>"]
MOST = 1 << 24  # entries; the largest vocabularies in use have a quarter of a million
BATCH_CHARACTERS = 1 << 20  # given to the trainer at once
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# GPT-4's split (tiktoken, cl100k_base), but with numbers in groups of two digits: a small vocabulary cannot spare 1,110
# entries for numbers. Contractions, words with one leading blank, punctuation, and runs of blanks are separate.
SPLIT = r"""(?i:'(?:[sdmt]|ll|ve|re))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
PRE_TOKENIZERS = ("gpt4", "gpt2")


def pre_tokenizer_of(name: str):
    """What splits a text before merging: "gpt4" is `SPLIT`, "gpt2" GPT-2's own split, which llama.cpp knows too."""
    if name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(
    documents: Iterable[str] | Iterable[list[str]], vocab_size: int, pre_tokenizer: str = PRE_TOKENIZERS[0]
):
    """A `PreTrainedTokenizerFast`: byte-level BPE with `vocab_size` entries, including special tokens and the 256 bytes.

    Many short documents are faster as lists of documents. Raises InputError if `vocab_size` is too small or beyond `MOST`.
    """
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise InputError(f"--vocab_size {vocab_size}: at least {least} are needed (256 bytes and the special tokens)")
    if vocab_size > MOST:
        raise InputError(f"--vocab_size {vocab_size}: expected at most {MOST:,}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer_of(pre_tokenizer)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Importing transformers takes half a second. A thread does it while the trainer merges: that is Rust, mostly on one
    # core, and does not hold Python's lock.
    importing = threading.Thread(target=importlib.import_module, args=("transformers.tokenization_utils_tokenizers",))

    def documents_then_import() -> Iterator:
        yield from documents
        importing.start()

    bpe.train_from_iterator(documents_then_import(), trainer)
    importing.join()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=SPECIAL_TOKENS[2:],
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders, globs or hf:// names")
    parser.add_argument("--text_column", default="text", help="column with the text (default: text)")
    parser.add_argument("--on_bad", choices=ON_BAD, default="error", help="bad rows (default: error)")
    parser.add_argument("--vocab_size", type=int, required=True, help="number of entries, special tokens included")
    parser.add_argument(
        "--pre_tokenizer",
        choices=PRE_TOKENIZERS,
        default=PRE_TOKENIZERS[0],
        help="how a text is split before merging: as GPT-4 does but in pairs of digits (default), or as GPT-2 does, which "
        "llama.cpp and Ollama read too",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="the tokenizer folder to write")
    arguments = parser.parse_args()
    vacant(arguments.output_dir)
    files = data_files(arguments.corpus, plain_text=True)
    bad_rows, counts = BadRows(arguments.on_bad, f"{arguments.output_dir}.quarantine.jsonl"), Counter()

    def batches() -> Iterator[list[str]]:
        texts = read_documents(files, text_column=arguments.text_column, bad_rows=bad_rows, counts=counts)
        with tqdm(desc="reading", unit="B", unit_scale=True, disable=None) as bar:
            for batch in batched_by_length(texts, BATCH_CHARACTERS):
                size = sum(len(text.encode("utf-8")) for text in batch)
                counts["bytes"] += size
                bar.update(size)
                yield batch

    tokenizer = train_tokenizer(batches(), arguments.vocab_size, arguments.pre_tokenizer)
    if len(tokenizer) < arguments.vocab_size:
        print(
            f"note: the corpus is too small for {arguments.vocab_size:,} entries; the tokenizer has {len(tokenizer):,}"
        )
    with atomic_folder(arguments.output_dir) as folder:
        tokenizer.save_pretrained(folder)
    for line in reading_counts(bad_rows, counts):
        print(line)
    print(
        f"trained a tokenizer of {len(tokenizer):,} entries on {counts['documents']:,} documents "
        f"({counts['bytes']:,} bytes); it is in {arguments.output_dir}"
    )


if __name__ == "__main__":
    run_main(main)
