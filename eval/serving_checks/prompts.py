"""Does a saved folder write the prompts of training? Its template, token by token, and what its settings say."""

from pathlib import Path

from transformers import GenerationConfig

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.models.loading import context_of, load_tokenizer
from data_prep.tokens.chat_encoder import (
    EXCHANGE,
    encode_conversations,
    encode_prompts,
    end_of_turn,
    special_token_text,
    texts_of,
    training_template,
)
from eval.diagnosis.run_settings import settings_of
from eval.serving_checks.rows import DIFFERS, NOTE, SAME, Row

TRAINED_FROM = (
    "model_name_or_path",
    "sft_model_path",
    "tokenizer",
)  # the setting of a recipe that names the tokenizer


def tokenizer_of_training(folder: str, given: str | None, own):
    """(the tokenizer that conversations were encoded with in training, what it was taken from in words).

    It is `given`, or that of the model that the folder's settings.json names, with the template that they name, or the
    folder's `own` where nothing says another.
    """
    if given:
        return load_tokenizer(given), given
    settings = settings_of(folder)
    named = next((settings[key] for key in TRAINED_FROM if settings.get(key)), None)
    template = settings.get("chat_template_path")
    if named is None:
        return own, "the folder's own, since it has no settings.json; --tokenizer names another"
    try:
        tokenizer = load_tokenizer(named)
        if template:
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    except (InputError, OSError):
        return own, f"the folder's own, since {template or named}, which settings.json names, is not at hand"
    if tokenizer.chat_template is None:
        return own, f"the folder's own, since {named} has no chat template"
    if settings.get("assistant_only_loss"):  # of recipes/sft.py, which trains by this one
        tokenizer.chat_template = training_template(tokenizer) or tokenizer.chat_template
    return tokenizer, f"{template or named}, by settings.json"


def first_difference(one: list[int], other: list[int]) -> int | None:
    """The first index at which two lists of tokens differ; None where they are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def served_prompts(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """The prompts' ids as `pipeline` and `transformers serve` make them."""
    return [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        for prompt in prompts
    ]


def prompt_row(tokenizer, training, where: str, rows: list[dict]) -> Row:
    """Are the ids of the prompts those of training, and does the answer of training begin where the prompt ends?"""
    prompts = [row["prompt"] for row in rows]
    trained, served = encode_prompts(training, prompts), served_prompts(tokenizer, prompts)
    wholes = encode_conversations(
        training, [[*row["prompt"], {"role": "assistant", "content": row["reference"]}] for row in rows]
    )
    found = [first_difference(one, other) for one, other in zip(trained, served, strict=True)]
    wrong = [index for index, place in enumerate(found) if place is not None]
    figures = {"same": len(rows) - len(wrong), "of": len(rows), "training": where}
    if wrong:
        index, place = wrong[0], found[wrong[0]]
        cause = _cause(tokenizer, training, prompts[index], trained[index], served[index])
        text = f"{len(wrong)} of {len(rows)}: prompt {index + 1} differs at token {place}: {cause}; training: {where}"
        return Row("prompt tokens", DIFFERS, text, {**figures, "token": place, "cause": cause})
    for index, (prompt, whole) in enumerate(zip(trained, wholes, strict=True)):
        if (place := first_difference(prompt, whole[: len(prompt)])) is not None:
            cause = (
                "wrong template: with add_generation_prompt it does not begin the assistant's turn as it writes one"
            )
            text = f"prompt {index + 1} differs at token {place}: {cause}"
            return Row("prompt tokens", DIFFERS, text, {**figures, "token": place, "cause": cause})
    return Row("prompt tokens", SAME, f"{len(rows)} of {len(rows)}; training: {where}", figures)


def _cause(tokenizer, training, prompt: list[dict], trained: list[int], served: list[int]) -> str:
    """Why the ids of a prompt are not those of training, by what is served before or instead."""
    bos, typed = tokenizer.bos_token_id, special_token_text(training)
    place = first_difference(trained, served)
    more, less = served[place:], trained[place:]
    cause = None
    if bos is not None and served[:2] == [bos, bos] != trained[:2]:
        cause = f"BOS twice ({tokenizer.bos_token!r})"
    elif bos is not None and served == [bos, *trained]:
        cause = f"a BOS ({tokenizer.bos_token!r}) that training had not"
    elif len(more) > len(less) and more[len(more) - len(less) :] == less and place < 4:
        cause = f"a default system turn that training had not, {shorten(tokenizer.decode(served[: len(more) - len(less)]))}"
    elif len(more) < len(less) and less[len(less) - len(more) :] == more and place < 4:
        cause = f"the default system turn of training is missing, {shorten(training.decode(trained[: len(less) - len(more)]))}"
    elif tokenizer.get_vocab() != training.get_vocab():
        cause = "another vocabulary than in training"
    elif tokenizer.chat_template == training.chat_template and any(
        typed.search(text) for message in prompt for text in texts_of(message)
    ):
        cause = (
            "a control token that somebody typed in it: text in training, a control token by transformers' template"
        )
    if cause is None:
        there, here = (shorten(each.decode(ids[:8])) for each, ids in ((training, less), (tokenizer, more)))
        cause = f"wrong template: {here} for {there} of training"
    return cause


def end_of_turn_row(folder: str, model, tokenizer, training) -> Row:
    """Does the folder's template end an answer with a token, as training did, and is that where generation stops?"""
    check, wrong = "end of turn", []
    try:
        trained = end_of_turn(training)
        own = end_of_turn(tokenizer)
    except InputError as error:  # a template without marks, whose turns cannot be found
        return Row(check, NOTE, f"not looked at: {error}")
    settings = model.generation_config.eos_token_id
    ids = settings if isinstance(settings, list) else [settings]
    stops = [tokenizer.convert_ids_to_tokens(token) for token in ids if token is not None]
    if trained is None and own is None:
        wrong.append("missing end of turn: no special token closes the assistant's turn in the template")
    elif own != trained:
        wrong.append(
            f"missing end of turn: the template closes an answer with {own!r}, in training it was {trained!r}"
        )
    if trained is not None and trained not in stops:
        named = ", ".join(map(repr, stops)) or "none"
        wrong.append(
            f"missing end of turn: generation_config.json stops at {named}, and an answer ends with {trained!r}"
        )
    if (Path(folder) / "adapter_config.json").exists() and wrong:
        wrong.append(
            "transformers takes the generation config of the base for an adapter: merge, or give eos_token_id"
        )
    return Row(
        check, DIFFERS if wrong else SAME, "; ".join(wrong) or f"{trained!r} in the template and as eos_token_id"
    )


def settings_row(model, tokenizer) -> Row:
    """Is what `generation_config.json` says what was measured: greedy, within the context, with a pad token?"""
    config: GenerationConfig = model.generation_config
    positions = context_of(model.config)
    wrong = []
    if config.do_sample is not False:
        how = "samples" if config.do_sample else "does not say, and pipeline samples at temperature 0.7"
        wrong.append(f"do_sample: it {how}; greedy is measured")
    changed = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_new_tokens": 0}
    for key, neutral in changed.items():
        if (value := getattr(config, key, None)) not in (None, neutral):
            wrong.append(f"{key} {value}: measured without")
    length = config.max_length or (config.max_new_tokens and config.max_new_tokens + 1)
    if positions and not length:
        wrong.append(f"no max_length: pipeline writes up to 256 tokens after the prompt; the context is {positions}")
    elif positions and length > positions:
        wrong.append(f"its limit of {length} tokens runs past the context of {positions}")
    if config.pad_token_id is None and tokenizer.pad_token_id is not None:
        wrong.append("no pad_token_id")
    return Row("generation_config", DIFFERS if wrong else SAME, "; ".join(wrong) or f"greedy, at most {length} tokens")


def template_notes(tokenizer) -> list[Row]:
    """What is right here and goes wrong elsewhere: a template that writes the BOS that the tokenizer adds too."""
    text = tokenizer.apply_chat_template(EXCHANGE[:1], tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer(text)["input_ids"][:2] == [bos, bos]:
        detail = (
            f"{tokenizer.bos_token!r} is written by the template and added by the tokenizer: BOS twice wherever the "
        )
        return [Row("BOS", NOTE, f"{detail}prompt is given as text (/v1/completions, llama.cpp)")]
    return []
