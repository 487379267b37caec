"""Check the quickstart's output against the loosest bounds that a working chain meets.

python .ci/check_quickstart.py runs/quickstart
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

run = Path(sys.argv[1])
stages = json.loads((run / "results.json").read_text())["stages"]
for stage in ("pretrain", "sft", "reward"):
    metrics = stages[stage]["metrics"]
    assert metrics["loss_last"] < metrics["loss_first"], f"{stage}: the loss did not fall: {metrics}"
assert stages["pretrain"]["metrics"]["bits_per_byte"] < 2.0, stages["pretrain"]["metrics"]
accuracy = stages["reward"]["metrics"]["accuracy"]
assert accuracy["low"] > 0.5, f"the reward model is not above chance: {accuracy}"
own = stages["answers_sft_heldout_own"]["metrics"]["eval_funcs"]["asked_fact"]
assert own["value"] > 0.5, f"the assistant answers its own wordings wrongly: {own}"
won = stages["win_rate_ppo_vs_sft_greedy"]["metrics"]["win_rate"]
assert won["low"] > 0.5, f"the rater does not prefer PPO's answers to SFT's: {won}"
assert (run / "report.html").stat().st_size > 10_000
AutoTokenizer.from_pretrained(run / "tokenizer")
for stage in ("base", "sft", "reward", "ppo"):
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    _, info = kind.from_pretrained(run / stage, output_loading_info=True)
    assert not info["missing_keys"], (stage, info)
    AutoTokenizer.from_pretrained(run / stage)
print("the quickstart's output holds: losses fell, every checkpoint loads, the reward model is above chance, PPO wins")
