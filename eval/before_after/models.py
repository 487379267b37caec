"""What one model makes of the documents and questions."""

from eval.before_after.documents import LONGEST, document_bits, first_token
from eval.common.assistants import is_assistant

MADE_BY = "recipes/pretrain.py, sft.py or ppo.py"


def check_readers(models: dict[str, str]) -> int:
    """The tokens of a window that fit all models, read from their files.

    Raises `InputError`, before any model is loaded, where a checkpoint is missing or cannot be used.
    """
    from data_prep.models.loading import context_of, load_config, load_tokenizer

    contexts = [context_of(load_config(folder, MADE_BY)) or LONGEST for folder in models.values()]
    for folder in models.values():
        first_token(load_tokenizer(folder), folder)
    return min(LONGEST, *contexts)


def check_asked(models: dict[str, str], max_new_tokens: int) -> tuple[dict[str, str], list[str]]:
    """(those of the models that are asked, the names of those of them that cannot be for want of a chat template).

    The first and the last model are asked in any case, one between them only if it is an assistant. Raises `InputError`
    where a checkpoint or its template cannot be used, or where it has no room for an answer.
    """
    from data_prep.models.loading import check_answer, check_template, load_config, load_tokenizer

    first, *between, last = models
    asked, mute = dict(models), []
    for name, folder in models.items():
        config, tokenizer = load_config(folder, MADE_BY), load_tokenizer(folder)
        if name in between and not is_assistant(tokenizer):
            del asked[name]
        elif tokenizer.chat_template is None:
            mute.append(name)
        else:
            check_template(tokenizer, folder)
            check_answer(folder, config, max_new_tokens)
    return asked, mute


def measure_models(
    readers: dict[str, str],
    asked: dict[str, str],
    mute: list[str],
    texts: dict[str, list[str]],
    prompts: dict[str, list],
    length: int,
    sampling: dict,
) -> tuple[dict, dict]:
    """({source: {reader: bits of each text}}, {source: {asked model: its answer to each prompt}}).

    Every model is loaded once, whatever it is measured on.

    Args:
        readers, asked: {name: folder} of the models that read the texts, and of those that are asked.
        mute: the names of those of the latter that cannot be asked; their answers are "".
        length, sampling: see `measure_model`.
    """
    bits: dict[str, dict] = {source: {} for source in texts}
    answers: dict[str, dict] = {source: {} for source in prompts}
    for folder in dict.fromkeys([*readers.values(), *asked.values()]):
        as_reader = [name for name, its in readers.items() if its == folder]
        as_asked = [name for name, its in asked.items() if its == folder]
        to_read, to_ask = texts if as_reader else {}, prompts if set(as_asked) - set(mute) else {}
        if not to_read and not to_ask:
            continue
        own, said = measure_model(folder, to_read, to_ask, length, sampling)
        for source in texts:
            bits[source] |= dict.fromkeys(as_reader, own.get(source))
        for source in prompts:
            answers[source] |= dict.fromkeys(as_asked, said.get(source))
    bits = {source: {name: own[name] for name in readers} for source, own in bits.items()}
    answers = {
        source: {name: own.get(name) or [""] * len(prompts[source]) for name in asked}
        for source, own in answers.items()
    }
    return bits, answers


def measure_model(
    folder: str, texts: dict[str, list[str]], prompts: dict[str, list], length: int, sampling: dict
) -> tuple[dict, dict]:
    """({source: bits of each text}, {source: its greedy answer to each prompt}) of the model in a folder.

    Args:
        length: tokens of a window.
        sampling: max_new_tokens and batch_size of `generate_answers`.
    """
    from data_prep.models.generation import generate_answers
    from data_prep.models.loading import load_checkpoint

    model, tokenizer = load_checkpoint(folder)
    first, rows = (
        first_token(tokenizer, folder),
        max(1, sampling["batch_size"] // 8),
    )  # windows are longer than answers
    bits = {
        source: document_bits(model, tokenizer, first, own, length, rows, f"{folder}, {source}")
        for source, own in texts.items()
    }
    answers = {}
    for source, own in prompts.items():
        given = generate_answers(model, tokenizer, own, desc=f"{folder}, {source}", **sampling)
        answers[source] = [answer["text"] for (answer,) in given]
    return bits, answers
