#!/usr/bin/env bash
# Does all of it run on this GPU, and how fast? Without a network, in about 25 minutes on an H100, by the time of its parts:
#   1. recipes/quickstart.sh: the whole chain, small;
#   2. the stages of recipes/configs/gpt2_small by their YAMLs, a few updates each, on the quickstart's data;
#   3. speed: GPT-2 124 M over the GPU's rate of matrix products, SFT, reward training and PPO beside TRL's own trainers.
# At the end runs/gpu_check/speed.json, with the GPU's name, and its table, RESULTS.md. A command whose output exists is
# skipped, so an interrupted run resumes; FRESH=1 starts over. REPEATS: of each measurement (default: 2).
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: torch sees no CUDA GPU here; on a processor: python -m eval.speed training" >&2
    exit 1
fi
[ "${FRESH:-0}" = 1 ] && rm -rf runs/gpu_check
bash recipes/quickstart.sh
OLD=runs/quickstart
RUN=runs/gpu_check
. recipes/steps.sh
mkdir -p $RUN/results $RUN/data
cp $OLD/data/prompts_ppo.json $RUN/data

# train RECIPE NAME OPTION…: a stage of GPT-2's size, with the quickstart's vocabulary, for a few updates at a constant rate.
train() {
    unfinished "$RUN/results/$1.json" "$RUN/$2"
    step "$RUN/results/$1.json" \
        $LAUNCH "recipes/$1.py" --config "recipes/configs/gpt2_small/$1.yaml" --lr_scheduler_type constant \
        --output_dir "$RUN/$2" --results_dir $RUN/results --logging_steps 1 --save_strategy no "${@:3}"
}
train pretrain base --tokenizer $OLD/tokenizer --tokens $OLD/data/tokens --heldout $OLD/data/corpus_heldout.jsonl \
    --lr_scheduler_kwargs '{}' --warmup_steps 0 --max_steps 8
train sft sft --model_name_or_path $RUN/base --conversations $OLD/data/conversations.json \
    --heldout $OLD/data/conversations_heldout_own.json --warmup_steps 0 --max_steps 16
train reward reward --model_name_or_path $RUN/sft --rankings $OLD/data/rankings.jsonl \
    --heldout $OLD/data/rankings_heldout.jsonl --warmup_steps 0 --max_steps 16
train ppo ppo --sft_model_path $RUN/sft --reward_model_path $RUN/reward --prompts $OLD/data/prompts_ppo.json \
    --heldout $OLD/data/conversations_validation.json --total_episodes 1536

REPEATS=${REPEATS:-2}
step $RUN/results/speed_training.json \
    python -m eval.speed training --run $OLD --part gpt2 sft reward --data $OLD/data/conversations.json --rows 3000 \
    --repeats "$REPEATS" --results_dir $RUN/results
step $RUN/results/speed_ppo.json \
    python -m eval.speed ppo --run $RUN --repeats "$REPEATS" --results_dir $RUN/results
step $RUN/speed.json \
    python -m eval.speed publish --results_dir $RUN/results --folder $RUN
printf '\nwhat was measured on this GPU: %s, %s\n' $RUN/speed.json $RUN/RESULTS.md
