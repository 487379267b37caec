"""Answers of several models to the same prompts."""

from data_prep.models.generation import generate_answers
from data_prep.models.loading import check_chat, load_checkpoint


def answers_of_models(
    models: list[str],
    prompts: list[list[dict]],
    max_new_tokens: int,
    temperature: float,
    num_return_sequences: int,
    batch_size: int,
    seed: int,
) -> list[list[list[str]]]:
    """The answers' texts: for each model one list per prompt, of `num_return_sequences` texts.

    All models are checked before the first one answers. The second has the next seed, and so on: with one seed all would
    use the same random numbers, and their answers would not be independent.
    """
    loaded = [load_checkpoint(name) for name in models]
    for name, (model, tokenizer) in zip(models, loaded, strict=True):
        check_chat(name, model, tokenizer, max_new_tokens)
    found = []
    for number, (name, (model, tokenizer)) in enumerate(zip(models, loaded, strict=True)):
        answers = generate_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens,
            temperature,
            num_return_sequences,
            batch_size,
            seed + number,
            name,
        )
        found.append([[answer["text"] for answer in group] for group in answers])
    return found
