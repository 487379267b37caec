"""Are answers those of the project's generation, token by token, and how likely does each side find them?"""

import copy

import torch

from data_prep.common.text import shorten
from data_prep.models.generation import generate_answers
from data_prep.models.loading import context_of
from data_prep.questions.server import without_key
from data_prep.tokens.chat_encoder import encode_prompts
from eval.serving_checks.prompts import first_difference
from eval.serving_checks.rows import DIFFERS, FAILS, SAME, Row


@torch.no_grad()
def answer_logits(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The logits, (tokens of the answer, vocabulary) in float32 on the CPU, that predict each token of an answer."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().cpu()


def token_logprobs(logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """The log-probability of each token of an answer in nats, (tokens,), from `answer_logits`."""
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def largest(differences: list[torch.Tensor]) -> float:
    """The largest absolute value in some tensors."""
    return max((each.abs().max().item() for each in differences if each.numel()), default=0.0)


class Expected:
    """The project's greedy answers: what everything else is compared with."""

    def __init__(self, model, tokenizer, training, prompts: list[list[dict]], max_new_tokens: int) -> None:
        """`tokenizer` is the folder's, with its end of an answer; the prompts are written by the template of `training`."""
        if tokenizer.get_vocab() == training.get_vocab():
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = training.chat_template
        self.tokenizer, self.prompts, self.max_new_tokens = tokenizer, prompts, max_new_tokens
        self.context = context_of(model.config)
        self.ids = encode_prompts(tokenizer, prompts)
        self.answers = [answer for (answer,) in generate_answers(model, tokenizer, prompts, max_new_tokens)]
        self.logprobs = self.logprobs_by(model)

    def logprobs_by(self, model) -> list[torch.Tensor]:
        """How likely `model` finds the expected answers; see `token_logprobs`."""
        return [
            token_logprobs(answer_logits(model, prompt, answer["ids"]), answer["ids"])
            for prompt, answer in zip(self.ids, self.answers, strict=True)
        ]

    def differs_at(self, index: int, given: list[int] | str) -> int | None:
        """The first token at which an answer, in tokens or as text, is another; None where it is the same.

        One that did not end within `max_new_tokens` is compared as far as it goes.
        """
        answer = self.answers[index]
        if isinstance(given, str):
            written = answer["ids"][
                : -1 if answer["stopped"] else None
            ]  # with the template's head, as servers tell it
            texts = (answer["text"], self.tokenizer.decode(written, skip_special_tokens=True))
            if given in texts or (not answer["stopped"] and given.startswith(texts)):
                return None
            encoded = self.tokenizer(given, add_special_tokens=False)["input_ids"]
            return first_difference(answer["ids"], encoded) or 0
        return first_difference(answer["ids"], given if answer["stopped"] else given[: len(answer["ids"])])

    def row(
        self,
        check: str,
        given: list[list[int] | str | Exception],
        logprobs: list[torch.Tensor] | None,
        tolerance: float | None,
        note: str = "",
        key: str = "",
    ) -> Row:
        """The line for one way to serve: its answers (or the error in place of one), and what it says of their tokens.

        Args:
            logprobs: of the expected answers' tokens, where this way tells them.
            tolerance: by how much a token's log-probability may differ, in nats.
            key: the server's, which it may repeat in what it says: hidden before that is truncated, or half would stay.
        """
        errors = [(index, each) for index, each in enumerate(given) if isinstance(each, Exception)]
        places = {
            index: place
            for index, each in enumerate(given)
            if not isinstance(each, Exception) and (place := self.differs_at(index, each)) is not None
        }
        same = len(given) - len(errors) - len(places)
        figures = {"same": same, "of": len(given), "failed": len(errors)}
        parts = [f"{same} of {len(given)} answers"]
        if errors:
            index, error = errors[0]
            told = " ".join(without_key(str(error), key).split()) or type(error).__name__
            parts.append(f"prompt {index + 1}: {shorten(told, 160)}")
        if places:
            index, place = next(iter(places.items()))
            there = given[index] if isinstance(given[index], str) else self.tokenizer.decode(given[index])
            there = shorten(without_key(there, key))
            parts.append(
                f"prompt {index + 1} differs at token {place}: {there} for {shorten(self.answers[index]['text'])}"
            )
            figures["token"] = place
        far = 0.0
        if logprobs is not None:
            pairs = zip(self.logprobs, logprobs, strict=True)
            far = largest([one[: len(other)] - other[: len(one)] for one, other in pairs])
            parts.append(f"log-probabilities within {far:.1e}")
            figures["logprob_difference"] = far
        within = tolerance is None or far <= tolerance
        status = FAILS if errors else SAME if within and not places else DIFFERS
        return Row(check, status, "; ".join([*parts, *([note] if note else [])]), figures)


def pipeline_row(expected: Expected, folder: str, served: list[list[int]], device, tolerance: float) -> Row:
    """`pipeline("text-generation")` on the folder, with nothing but its own generation config.

    `served` are the ids of the prompts as it makes them.
    """
    from transformers import pipeline

    pipe = pipeline("text-generation", model=folder, device=device, trust_remote_code=False)
    given: list[list[int] | Exception] = []
    for prompt, ids in zip(expected.prompts, served, strict=True):
        try:
            given.append(pipe(prompt, return_tensors=True)[0]["generated_token_ids"][len(ids) :])
        except (IndexError, RuntimeError, ValueError) as error:
            given.append(error)
    return expected.row("pipeline", given, expected.logprobs_by(pipe.model), tolerance)
