"""The page on which people rank answers, blind: the ranking page and the arena show the same one, with other words."""

import json
from pathlib import Path

from data_prep.common.text import printable
from data_prep.pages.launch import page
from data_prep.pages.logins import logged_in
from data_prep.pages.words import in_language
from data_prep.ranking.people import People, rater_name

HERE = Path(__file__).parent
# Of the frame around the page: what would keep the places from staying at the lower edge, and margins.
FRAME = """
.gradio-container { overflow: clip !important; }
.gradio-container .html-container { padding: 0 !important; }
@media (max-width: 640px) { .gradio-container .main { padding: 0.7rem !important; } }
"""
ROLES = {"user": ("Question", "问题"), "assistant": ("Answer", "回答"), "system": ("System", "系统")}
ORDINALS = ("1st", "2nd", "3rd", *(f"{number}th" for number in range(4, 21)))
WORDS = {
    "intro": (
        "You will see a question and several answers to it, and put the answers in order, the best first. You are not "
        "told who wrote them. Your name is kept with every judgement, so that it is known who judged.",
        "您会看到一个问题和几个回答，请将回答从好到差排序。页面不会告诉您回答由谁所写。您的名字会与每条评判一起保存。",
    ),
    "name": ("Your name", "您的名字"),
    "begin": ("Begin", "开始"),
    "another_name": ("another name", "换个名字"),
    "log_out": ("log out", "退出登录"),
    "other_login": (
        "Not saved: you are logged in as {name} by now. Reload the page, which then is that of {name}.",
        "未保存：您现在以 {name} 的身份登录。请重新加载页面，之后显示的是 {name} 的页面。",
    ),
    "question": ("Which answer is better? Put all in order.", "哪个回答更好？请给所有回答排序。"),
    "answer": ("Answer {number}", "回答 {number}"),
    "put": ("answer {number}: place {place}", "回答 {number}：第 {place} 名"),
    "empty": ("(an empty answer)", "（空回答）"),
    "save_it": ("Save", "保存"),
    "equal": ("Equal", "相同"),
    "all_bad": ("All bad", "都不好"),
    "skip": ("Skip", "跳过"),
    "undo": ("Undo", "撤销"),
    "note": ("Note", "备注"),
    "better": ("Better answer", "更好的回答"),
    "note_hint": (
        "A note, kept with the judgement (Esc leaves the field, Ctrl+Enter saves)",
        "备注，与评判一起保存（Esc 离开输入框，Ctrl+Enter 保存）",
    ),
    "better_hint": (
        "How you would answer: it becomes an example for fine-tuning (Esc leaves the field, Ctrl+Enter saves)",
        "您会怎样回答：它将成为微调的示例（Esc 离开输入框，Ctrl+Enter 保存）",
    ),
    "keys": (
        "Keys: the numbers of the answers, best first, = between equal ones (= at once: all are equal), Backspace takes "
        "one back, Enter saves. Or drag the numbers to their places. The last answer left takes the last place.",
        "按键：从好到差依次按回答的编号，相同的之间按 =（一开始按 = 表示全部相同），Backspace 退回一个，Enter 保存。也可以把编号拖到名次上。"
        "剩下的最后一个回答自动排在最后。",
    ),
    "touch": (
        "Tap a place beside each answer, or drag its number to its place. The last answer left takes the last place.",
        "点按每个回答旁的名次，或把编号拖到名次上。剩下的最后一个回答自动排在最后。",
    ),
    "progress": ("Judged: {mine} · left for you: {left} ·", "已评判：{mine} · 您还剩：{left} ·"),
    "finished": (
        "There is nothing left for you to judge. Thank you. Everything is saved; you may close the page.",
        "没有需要您评判的了，谢谢！所有内容均已保存，可以关闭页面。",
    ),
    "look_again": ("Look again", "再看一次"),
    "not_saved": (
        "Not saved: the server does not answer. Your judgement is still on this page; try again, or reload the page.",
        "未保存：服务器没有响应。您的评判仍在此页面上，请重试，或重新加载页面。",
    ),
    "unplaced": ("Every answer needs a place.", "每个回答都需要一个名次。"),
    "nothing_to_undo": ("There is no judgement of yours to take back.", "没有可以撤销的评判。"),
    "agreement": (
        "Agreement of those who ranked the same answers, on {prompts} prompts: Kendall's tau {tau}, Krippendorff's alpha "
        "{alpha} (1: perfect, 0: chance; in brackets 95 % intervals).",
        "对相同回答排序的人之间的一致性（{prompts} 个问题）：Kendall tau {tau}，Krippendorff alpha {alpha}（1 为完全一致，0 为随机水平；括号内为 95% 区间）。",
    ),
    "no_agreement": ("No prompt has been ranked by two people yet.", "还没有被两个人排序过的问题。"),
}


def ranking_page(people: People, language: str, title: str, changed_words: dict | None = None, named: bool = False):
    """Gradio's Blocks with the page.

    Args:
        changed_words: those that differ from `WORDS`, {name: (English, Chinese)}.
        named: whether a rater's name is that of the login (`--logins`); otherwise it is typed in.
    """
    words = vars(in_language({**WORDS, **(changed_words or {})}, language))
    words["title"] = title
    words["roles"] = vars(in_language(ROLES, language))
    words["places"] = ORDINALS if language == "en" else [f"第{place}" for place in range(1, 21)]
    if named:
        words["another_name"] = words["log_out"]

    def answered(function):
        """What `function` returns; an error in what was asked is told on the page."""
        try:
            return function()
        except ValueError as error:
            return {"error": str(error)}

    def shown(rater: str, had: int | None = None) -> dict:
        found = people.task(rater, had)
        if task := found["task"]:
            turns = [{key: printable(turn[key]) for key in ("role", "content")} for turn in task["prompt"]]
            found["task"] = {**task, "prompt": turns, "answers": [printable(text) for text in task["answers"]]}
        return {**found, "rater": rater_name(rater)}

    def rater_of(asked: dict, request) -> str:
        """Who judges; ValueError where that is no longer who had logged in when the page was loaded."""
        if named and (name := logged_in(request)) != asked.get("rater"):
            raise ValueError(words["other_login"].format(name=name))
        return asked.get("rater")

    with page(title) as blocks:
        import gradio

        def ranking_task(asked: dict, request: gradio.Request) -> dict:
            rater = logged_in(request) if named else asked.get("rater")
            had = asked.get("row") if rater == asked.get("rater") else None  # the row of whoever was there before
            return answered(lambda: shown(rater, had))

        def ranking_judge(asked: dict, request: gradio.Request) -> dict:
            def judge():
                rater = rater_of(asked, request)
                people.judge(rater, asked.get("row"), asked.get("judgement") or {})
                return shown(rater)

            return answered(judge)

        def ranking_undo(asked: dict, request: gradio.Request) -> dict:
            def undo():
                before = people.undo(rater := rater_of(asked, request))
                return {**shown(rater), "before": before}

            return answered(undo)

        given = f"const WORDS = {json.dumps(words)}, NAMED = {json.dumps(named)};\n"
        gradio.HTML(
            html_template=(HERE / "rank.html").read_text(encoding="utf-8"),
            css_template=(HERE / "rank.css").read_text(encoding="utf-8"),
            js_on_load=given + (HERE / "rank.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            server_functions=[ranking_task, ranking_judge, ranking_undo],
        )
    return blocks
