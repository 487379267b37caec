"""One message, answered by several models at once, as the answers grow; scored by a reward model at the end."""

import threading
import time
import traceback
from collections.abc import Iterator

from data_prep.common.errors import InputError
from eval.pages.talkers import Options, as_messages

INTERVAL = 0.04  # seconds between two states that are shown


class Scorer:
    """A reward model, which scores one answer at a time."""

    words = "reward model, scores every answer"

    def __init__(self, name: str) -> None:
        from data_prep.models.loading import check_template, load_checkpoint

        self.name = name
        self.model, self.tokenizer = load_checkpoint(name, reward_model=True)
        check_template(self.tokenizer, name)
        self.lock = threading.Lock()

    def score(self, messages: list[dict], text: str, ended: bool) -> float:
        """The reward of `text` as the answer to a conversation. Raises InputError where they do not fit its context."""
        from data_prep.models.scoring import score_answers

        with self.lock:
            (score,) = score_answers(self.model, self.tokenizer, [messages], [text], stopped=[ended])
        return score


def history_of(exchanges: list[dict], index: int) -> list[tuple[str, str]]:
    """The conversation with the model at `index`, [(message, answer)]; what failed is not part of it."""
    said = [(exchange["message"], exchange["answers"][index]) for exchange in exchanges]
    return [(message, answer["text"]) for message, answer in said if not answer["error"]]


def answers(
    talkers: list,
    scorer: Scorer | None,
    exchanges: list[dict],
    message: str,
    options: Options,
    stop: threading.Event,
) -> Iterator[list[dict]]:
    """The answers of all models to a message after `exchanges`, again and again until all are written.

    An answer is {"text", "state": waiting, writing, scoring or done, "mode": chat, base, dialogue or server, "ended",
    "stopped", "tokens", "seconds", "first": seconds to the first token, "reward", "score_error", "error", "prompt", "forgotten",
    "truncated"}. Closing the iterator stops the models.
    """
    changed = threading.Event()
    all_answers = [
        {
            "text": "",
            "state": "waiting",
            "mode": "dialogue" if talker.kind == "base" and options.fake_dialogue else talker.kind,
            "ended": False,
            "stopped": False,
            "tokens": None,
            "seconds": None,
            "first": None,
            "reward": None,
            "score_error": "",
            "error": "",
            "prompt": "",
            "forgotten": 0,
            "truncated": 0,
        }
        for talker in talkers
    ]

    def work(index: int) -> None:
        answer, begun, history = all_answers[index], time.monotonic(), history_of(exchanges, index)

        def tell(text: str) -> None:
            if answer["first"] is None:
                answer["first"] = time.monotonic() - begun
            answer["text"], answer["state"] = text, "writing"
            changed.set()

        try:
            said = talkers[index].answer(history, message, options, stop, tell)
            answer |= {
                **said._asdict(),
                "seconds": time.monotonic() - begun,
                "stopped": stop.is_set() and not said.ended,
            }
            if scorer and said.text.strip():
                answer["state"] = "scoring"
                changed.set()
                # A base model's text is scored as the answer to the message, whatever it was given.
                answer["reward"] = scorer.score(as_messages(history, message, options.system), said.text, said.ended)
        except InputError as error:
            answer["score_error" if answer["seconds"] is not None else "error"] = str(error)
        except Exception as error:  # the page goes on with the other models; what is wrong is told in both places
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        finally:
            answer["state"] = "done"
            changed.set()

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(talkers))]
    for thread in threads:
        thread.start()
    try:
        while any(answer["state"] != "done" for answer in all_answers):
            changed.wait(1)
            changed.clear()
            yield all_answers
            time.sleep(INTERVAL)
        yield all_answers
    finally:
        stop.set()
