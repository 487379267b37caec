#!/usr/bin/env bash
# The whole chain on the documentation inside your own Python: tokenizer → base model → assistant → reward model → PPO.
# This file is the tutorial: copy any command, change the data, run it. A command whose output exists is skipped, so an
# interrupted run resumes; FRESH=1 starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=runs/quickstart
. recipes/steps.sh
[ "${FRESH:-0}" = 1 ] && rm -rf "$RUN"
mkdir -p "$RUN/results"

# Read the documentation: a corpus, and conversations about 800 names.
step $RUN/data/conversations.json \
    python -m data_prep.python_docs --output_dir $RUN/data
# Train a byte-level BPE tokenizer on the corpus, chat template inside.
step $RUN/tokenizer \
    python -m data_prep.train_tokenizer --corpus $RUN/data/corpus/*.jsonl --vocab_size 4096 --output_dir $RUN/tokenizer
# Mix the sources by weights in tokens, and tokenize them.
step $RUN/data/tokens \
    python -m data_prep.mix_corpus --config recipes/configs/quickstart/mix.yaml
# Pretrain a GPT-2-style model from random weights.
unfinished $RUN/results/pretrain.json $RUN/base
step $RUN/results/pretrain.json \
    $LAUNCH recipes/pretrain.py $ATTENTION --config recipes/configs/quickstart/pretrain.yaml
# Fine-tune it on the demonstrations.
unfinished $RUN/results/sft.json $RUN/sft
step $RUN/results/sft.json \
    $LAUNCH recipes/sft.py $ATTENTION --config recipes/configs/quickstart/sft.yaml
[ "${UNTIL:-}" = sft ] && exit  # recipes/adapt.sh needs no more
# Sample answers to other prompts …
step $RUN/data/completions.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/prompts_rankings.json \
    --num_return_sequences 4 --batch_size 512 --output $RUN/data/completions.jsonl
# … and rank them by a rubric, a stand-in for a human rater: right before wrong, and of right answers the complete one.
RUBRIC=data_prep.rewards.rubric
step $RUN/data/rankings.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions.jsonl --by function --function $RUBRIC \
    --output $RUN/data/rankings.jsonl
# Let the data doctor look at what the assistant and the reward model learn from. (Without --similarity it looks for
# near-duplicates too, and takes ten seconds more.)
step $RUN/doctor \
    python -m data_prep.check $RUN/data/conversations.json $RUN/data/rankings.jsonl --similarity 1 --output $RUN/doctor
# The same rankings for held-out wordings and for held-out names, to measure the reward model on.
step $RUN/data/completions_heldout.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/conversations_heldout.json \
    --limit 400 --num_return_sequences 16 --batch_size 512 --seed 1 --output $RUN/data/completions_heldout.jsonl
step $RUN/data/rankings_heldout.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions_heldout.jsonl --by function \
    --function $RUBRIC --output $RUN/data/rankings_heldout.jsonl
step $RUN/data/completions_heldout_names.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/conversations_heldout_names.json \
    --num_return_sequences 4 --batch_size 512 --seed 1 --output $RUN/data/completions_heldout_names.jsonl
step $RUN/data/rankings_heldout_names.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions_heldout_names.jsonl --by function \
    --function $RUBRIC --output $RUN/data/rankings_heldout_names.jsonl
# Train a reward model on the rankings, starting from the assistant.
unfinished $RUN/results/reward.json $RUN/reward
step $RUN/results/reward.json \
    $LAUNCH recipes/reward.py $ATTENTION --config recipes/configs/quickstart/reward.yaml
# Is it fit for PPO? Told before PPO, without training.
step $RUN/results/reward_gate_heldout.json \
    python -m eval.reward_gate --reward $RUN/reward --policy $RUN/sft --rankings $RUN/data/rankings_heldout.jsonl \
    --name heldout --results_dir $RUN/results
# Improve the assistant by PPO against the reward model.
unfinished $RUN/results/ppo.json $RUN/ppo
step $RUN/results/ppo.json \
    $LAUNCH recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml
# Stage against stage: bits per byte of documents that no training saw; greedy answers to questions in the wordings of the
# demonstrations, in held-out wordings, in those of a language model that had seen neither, and about held-out names (is
# the fact that was asked for right, are all facts, what would the rater give?); win rates by the rater; the reward model's
# accuracy.
FACTS="data_prep.rewards.asked_fact data_prep.rewards.all_facts"
step $RUN/results/table.md \
    python -m eval.run --run $RUN --judge $RUBRIC --eval_funcs $FACTS $RUBRIC --limit 1000 --max_new_tokens 48 \
    --batch_size 512
# One page with all of it.
step $RUN/report.html \
    python -m eval.report --run $RUN

printf '\nthe report: %s\nchat with the result: .venv/bin/python -m eval.chat --model %s\n' "$RUN/report.html" "$RUN/ppo"
