"""What the chat page shows of a conversation, as HTML; all that people and models wrote is text in it."""

import html

from data_prep.common.text import printable
from data_prep.pages.launch import text_html

STYLE = """
.exchange { margin: 0 0 1.25rem; }
.asked { display: flex; justify-content: flex-end; margin-bottom: .75rem; }
.asked .text { max-width: min(85%, 46rem); padding: .6rem .9rem; border-radius: .9rem .9rem .2rem .9rem;
  background: var(--color-accent-soft); color: var(--body-text-color); border: 1px solid var(--border-color-accent-subdued); }
.answers { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.answer { border: 1px solid var(--border-color-primary); border-radius: .6rem; padding: .7rem .9rem; overflow: hidden;
  background: var(--background-fill-primary); }
.answer h3 { margin: 0 0 .4rem; font-size: .95rem; overflow-wrap: anywhere; }
.answer h3 .quiet { font-weight: 400; margin-inline-start: .4rem; }
.answer .text { line-height: 1.5; min-height: 1.5em; }
.answer .facts { margin: .5rem 0 0; font-size: .8rem; display: flex; flex-wrap: wrap; gap: .15rem .8rem; }
.answer .reward { font-weight: 600; color: var(--body-text-color); }
.answer .error { color: var(--error-text-color, #b91c1c); }
.answer details { margin-top: .4rem; font-size: .8rem; }
.answer details .text { margin-top: .3rem; max-height: 14rem; overflow: auto; font-family: var(--font-mono);
  padding: .5rem; background: var(--background-fill-secondary); border-radius: .4rem; }
.answer summary { cursor: pointer; }
"""


def models_html(words, names: list[str], kinds: list[str], reward_model: str | None) -> str:
    """The title, and a line that says what each model is."""
    lines = [
        f"<b>{_escaped(name)}</b> {_escaped(getattr(words, kind))}" for name, kind in zip(names, kinds, strict=True)
    ]
    if reward_model:
        lines.append(f"<b>{_escaped(reward_model)}</b> {_escaped(words.scores)}")
    return f'<h1>{words.title}</h1><p class="quiet text">{" · ".join(f"<bdi>{line}</bdi>" for line in lines)}</p>'


def exchange_html(words, names: list[str], exchange: dict) -> str:
    """A message and the answers of all models, side by side where the page is wide enough."""
    rewards = [answer["reward"] for answer in exchange["answers"] if answer["reward"] is not None]
    best = max(rewards) if len(rewards) > 1 and min(rewards) < max(rewards) else None
    shown = [
        _answer_html(words, name, exchange["message"], answer, best is not None and answer["reward"] == best)
        for name, answer in zip(names, exchange["answers"], strict=True)
    ]
    asked = f'<div class="asked">{text_html(exchange["message"])}</div>'
    return f'<article class="exchange">{asked}<div class="answers">{"".join(shown)}</div></article>'


def _answer_html(words, name: str, message: str, answer: dict, best: bool) -> str:
    head = (
        f'<h3><bdi>{_escaped(name)}</bdi> <span class="quiet">{_escaped(getattr(words, answer["mode"]))}</span></h3>'
    )
    if answer["error"]:
        return (
            f'<section class="answer">{head}{text_html(words.failed.format(error=answer["error"]), "error")}</section>'
        )
    done = answer["state"] == "done"
    said = "" if answer["text"] or not done else f'<span class="quiet">{_escaped(words.empty)}</span>'
    if answer["mode"] == "base":  # one text: the message, and what the model makes of it
        said = f'<span class="quiet">{_escaped(message)}</span>{_escaped(answer["text"])}{said}'
    else:
        said = _escaped(answer["text"]) + said
    text = f'<div class="text" dir="auto">{said}</div>'
    facts = []
    if answer["reward"] is not None:
        reward = words.reward.format(score=f"{answer['reward']:.2f}") + (f" · {words.best}" if best else "")
        facts.append(f'<span class="reward">{_escaped(reward)}</span>')
    if not done:
        facts.append(_fact(getattr(words, answer["state"])))
    else:
        facts += map(_fact, _facts(words, answer))
    prompt = ""
    if done and answer["prompt"]:
        prompt = f"<details><summary>{_escaped(words.given)}</summary>{text_html(answer['prompt'])}</details>"
    return f'<section class="answer">{head}{text}<p class="facts quiet">{"".join(facts)}</p>{prompt}</section>'


def _facts(words, answer: dict) -> list[str]:
    """What is told of a finished answer, in words."""
    end = "ended" if answer["ended"] else "stopped" if answer["stopped"] else "cut"
    facts = [getattr(words, end)]
    if answer["tokens"] is not None:
        facts.append(words.tokens.format(count=answer["tokens"]))
    facts.append(words.seconds.format(seconds=f"{answer['seconds']:.1f}"))
    if answer["forgotten"]:
        facts.append(words.forgotten.format(count=answer["forgotten"]))
    if answer["truncated"]:
        facts.append(words.truncated.format(count=answer["truncated"]))
    if answer["score_error"]:
        facts.append(words.no_reward.format(error=answer["score_error"]))
    return facts


def _fact(text: str) -> str:
    return f"<bdi>{_escaped(text)}</bdi>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
