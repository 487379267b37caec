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
    $LAUNCH recipes/pretrain.py --config recipes/configs/quickstart/pretrain.yaml
# Fine-tune it on the demonstrations.
unfinished $RUN/results/sft.json $RUN/sft
step $RUN/results/sft.json \
    $LAUNCH recipes/sft.py --config recipes/configs/quickstart/sft.yaml
# Sample answers to the prompts, and add the documented answer and that of a neighbouring question …
step $RUN/data/completions.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/prompts_rankings.json \
    --num_return_sequences 3 --include_reference --include_others 1 --output $RUN/data/completions.jsonl
# … and rank them (by a proxy for a human rater: agreement with the documentation).
step $RUN/data/rankings.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions.jsonl --output $RUN/data/rankings.jsonl
# The same for held-out wordings and for held-out names, to measure the reward model on.
step $RUN/data/completions_heldout.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/conversations_heldout.json \
    --limit 1600 --num_return_sequences 3 --seed 1 --output $RUN/data/completions_heldout.jsonl
step $RUN/data/rankings_heldout.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions_heldout.jsonl \
    --output $RUN/data/rankings_heldout.jsonl
step $RUN/data/completions_heldout_names.jsonl \
    python -m data_prep.sample_completions --model $RUN/sft --conversations $RUN/data/conversations_heldout_names.json \
    --num_return_sequences 3 --seed 1 --output $RUN/data/completions_heldout_names.jsonl
step $RUN/data/rankings_heldout_names.jsonl \
    python -m data_prep.rank_completions --completions $RUN/data/completions_heldout_names.jsonl \
    --output $RUN/data/rankings_heldout_names.jsonl
# Train a reward model on the rankings, starting from the assistant.
unfinished $RUN/results/reward.json $RUN/reward
step $RUN/results/reward.json \
    $LAUNCH recipes/reward.py --config recipes/configs/quickstart/reward.yaml
# Improve the assistant by PPO against the reward model.
unfinished $RUN/results/ppo.json $RUN/ppo
step $RUN/results/ppo.json \
    $LAUNCH recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml
# Base: bits per byte on documents that no training saw.
step $RUN/results/perplexity_base.json \
    python -m eval.perplexity --model $RUN/base --documents $RUN/data/corpus_heldout.jsonl --results_dir $RUN/results
# Assistant, before and after PPO: exact match with the documentation, for questions in the wordings of the demonstrations,
# in held-out wordings, in those of a language model that had seen neither, and about held-out names.
step $RUN/results/answers_sft_own.json \
    python -m eval.answers --model $RUN/sft --conversations $RUN/data/conversations_heldout_own.json \
    --name sft_own --limit 400 --results_dir $RUN/results
for MODEL in sft ppo; do
    step $RUN/results/answers_${MODEL}_heldout.json \
        python -m eval.answers --model $RUN/$MODEL --conversations $RUN/data/conversations_heldout.json \
        --name ${MODEL}_heldout --limit 400 --results_dir $RUN/results
    step $RUN/results/answers_${MODEL}_heldout_others.json \
        python -m eval.answers --model $RUN/$MODEL --conversations $RUN/data/conversations_heldout_others.json \
        --name ${MODEL}_heldout_others --limit 400 --results_dir $RUN/results
    step $RUN/results/answers_${MODEL}_heldout_names.json \
        python -m eval.answers --model $RUN/$MODEL --conversations $RUN/data/conversations_heldout_names.json \
        --name ${MODEL}_heldout_names --limit 200 --results_dir $RUN/results
done
# Reward model: accuracy on rankings about held-out names (that on held-out wordings is in results/reward.json).
step $RUN/results/reward_accuracy_heldout_names.json \
    python -m eval.reward_accuracy --model $RUN/reward --rankings $RUN/data/rankings_heldout_names.jsonl \
    --name heldout_names --results_dir $RUN/results
# Stage against stage: win rates of sampled answers, judged by the documentation.
step $RUN/results/win_rate_ppo_vs_sft.json \
    python -m eval.win_rate --model $RUN/ppo --opponent $RUN/sft --conversations $RUN/data/conversations_heldout.json \
    --max_new_tokens 48 --name ppo_vs_sft --results_dir $RUN/results
step $RUN/results/win_rate_sft_vs_base.json \
    python -m eval.win_rate --model $RUN/sft --opponent $RUN/base --conversations $RUN/data/conversations_heldout.json \
    --limit 100 --num_return_sequences 2 --max_new_tokens 48 --name sft_vs_base --results_dir $RUN/results
# One page with all of it.
step $RUN/report.html \
    python -m eval.report --run $RUN

printf '\nthe report: %s\nchat with the result: .venv/bin/python -m eval.chat --model %s\n' "$RUN/report.html" "$RUN/ppo"
