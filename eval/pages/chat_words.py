"""The words of the chat page, {name: (English, Chinese)}."""

WORDS = {
    "title": ("Chat", "对话"),
    "unkept": (
        "Write a message below. Reloading the page begins anew: save what you want to keep.",
        "请在下面输入消息。刷新页面会重新开始，需要保留的对话请先保存。",
    ),
    "message": ("Message", "消息"),
    "keys": ("Enter sends · Shift+Enter: new line · Esc stops", "Enter 发送 · Shift+Enter 换行 · Esc 停止"),
    "send": ("Send", "发送"),
    "retry": ("Retry", "重试"),
    "edit": ("Edit last", "修改上一条"),
    "cancel_edit": ("Cancel edit", "取消修改"),
    "new": ("New", "新对话"),
    "save_one": ("Save", "保存对话"),
    "save_of": ("Save: {model}", "保存：{model}"),
    "temperature": ("Temperature (0: always the likeliest token)", "温度（0：总取最可能的 token）"),
    "longest": ("Longest answer, in tokens", "回答的最大长度（token）"),
    "fake": (
        "Fake dialogue: put a few questions and answers in front, so that a base model seems to converse",
        "伪对话：在前面放几组问答，让基座模型看起来在对话",
    ),
    # What a model is.
    "chat": ("answers", "会回答"),
    "base": ("base model: continues text", "基座模型：续写文本"),
    "dialogue": ("base model in a fake dialogue", "基座模型（伪对话）"),
    "server": ("at an address", "远程模型"),
    "scores": ("reward model: scores every answer", "奖励模型：给每个回答打分"),
    # The state of an answer.
    "waiting": ("waiting…", "等待中…"),
    "writing": ("writing…", "生成中…"),
    "scoring": ("scoring…", "打分中…"),
    "empty": (" (no text)", "（没有文字）"),
    "ended": ("ended by itself", "自行结束"),
    "cut": ("cut off at the longest answer", "达到最大长度，被截断"),
    "stopped": ("stopped by you", "已被你停止"),
    "failed": ("error: {error}", "错误：{error}"),
    "reward": ("reward {score}", "奖励 {score}"),
    "best": ("highest", "最高"),
    "no_reward": ("no reward: {error}", "没有奖励分：{error}"),
    "tokens": ("tokens: {count}", "token 数：{count}"),
    "seconds": ("{seconds} s", "{seconds} 秒"),
    "given": ("What the model was given", "模型读到的内容"),
    "forgotten": ("exchanges that no longer fit and are forgotten: {count}", "放不下而忘掉的最早对话轮数：{count}"),
    "truncated": (
        "tokens at the start of the message that do not fit: {count}",
        "消息开头放不下而截掉的 token 数：{count}",
    ),
    # The line of status.
    "nothing_written": ("Write a message first.", "请先输入消息。"),
    "too_long": (
        "The message has {count} characters; at most {most} can be sent.",
        "消息有 {count} 个字符，最多可发送 {most} 个。",
    ),
    "busy": ("The models are writing.", "模型正在生成。"),
    "done": ("All answers are written.", "回答已全部生成。"),
    "greedy": (
        "At temperature 0 the same answer comes again; raise the temperature for another one.",
        "温度为 0 时重试会得到同样的回答；想要不同的回答，请调高温度。",
    ),
    "editing": (
        "Sending replaces your last message and its answers. Cancel keeps them.",
        "发送后会替换上一条消息及其回答；取消则保留。",
    ),
    "nothing_to_retry": ("There is no message yet.", "还没有消息。"),
    "begun_anew": ("A new conversation.", "新对话已开始。"),
    "saved": ("Saved: row {count} of {file}.", "已保存：{file} 的第 {count} 行。"),
    "saved_cut": (
        "Saved: row {count} of {file}. Its last answer did not end by itself: look at it before you train on it.",
        "已保存：{file} 的第 {count} 行。最后的回答没有自行结束，训练前请检查。",
    ),
    "saved_already": ("This conversation is saved already.", "这段对话已经保存过了。"),
    "not_saved_empty": (
        "Not saved: {model} has an empty answer or an error in this conversation.",
        "未保存：{model} 在这段对话里有空回答或错误。",
    ),
    "not_saved_continued": (
        "Not saved: {model} continued your text, that is no conversation. Turn on the fake dialogue.",
        "未保存：{model} 只是续写了文本，不是对话。请打开伪对话。",
    ),
    "not_saved": ("Not saved: {error}", "未保存：{error}"),
    "no_file": (
        "To keep conversations, start the page with --save_to FILE.jsonl.",
        "要保存对话，请用 --save_to FILE.jsonl 启动页面。",
    ),
}
