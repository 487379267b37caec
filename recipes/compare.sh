#!/usr/bin/env bash
# After recipes/quickstart.sh: DPO, RLOO and GRPO from the same SFT model at PPO's wall time, PPO with two more seeds, and
# all of them in one table of the report. A command whose output exists is skipped, so an interrupted run resumes. To
# train a model again, remove its results, its answers_… and its win_rate_….
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=runs/quickstart
. recipes/steps.sh
if [ ! -e $RUN/results/ppo.json ]; then
    echo "error: $RUN/results/ppo.json: no such file or folder; it is made by: recipes/quickstart.sh" >&2
    exit 1
fi

# ppo_with_seed SEED: PPO of the quickstart with another seed. A recipe names its results by its stage, ppo.json: they are
# written into the model's folder and then moved beside those of the first seed.
ppo_with_seed() {
    $LAUNCH recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml --seed "$1" \
        --output_dir "$RUN/ppo_seed$1" --results_dir "$RUN/ppo_seed$1"
    mv "$RUN/ppo_seed$1/ppo.json" "$RUN/results/ppo_seed$1.json"
}

# The others get the time that PPO took here.
PPO_SECONDS=$(python -c "import json; print(json.load(open('$RUN/results/ppo.json'))['seconds'])")
# Learn from the rankings themselves, without a reward model.
unfinished $RUN/results/dpo.json $RUN/dpo
step $RUN/results/dpo.json \
    $LAUNCH recipes/dpo.py --config recipes/configs/quickstart/dpo.yaml --max_seconds "$PPO_SECONDS"
# Against the same reward model, each answer compared with others to its prompt instead of with a value model.
unfinished $RUN/results/rloo.json $RUN/rloo
step $RUN/results/rloo.json \
    $LAUNCH recipes/rloo.py --config recipes/configs/quickstart/rloo.yaml --max_seconds "$PPO_SECONDS"
unfinished $RUN/results/grpo.json $RUN/grpo
step $RUN/results/grpo.json \
    $LAUNCH recipes/grpo.py --config recipes/configs/quickstart/grpo.yaml --max_seconds "$PPO_SECONDS"
# PPO again, with other random numbers.
for SEED in 1 2; do
    unfinished $RUN/results/ppo_seed$SEED.json $RUN/ppo_seed$SEED
    step $RUN/results/ppo_seed$SEED.json ppo_with_seed $SEED
done
# Each as PPO in the quickstart: greedy answers in held-out wordings, sampled ones against SFT's.
for MODEL in dpo rloo grpo ppo_seed1 ppo_seed2; do
    step $RUN/results/answers_${MODEL}_heldout.json \
        python -m eval.answers --model $RUN/$MODEL --conversations $RUN/data/conversations_heldout.json \
        --name ${MODEL}_heldout --limit 400 --results_dir $RUN/results
    step $RUN/results/answers_${MODEL}_heldout_others.json \
        python -m eval.answers --model $RUN/$MODEL --conversations $RUN/data/conversations_heldout_others.json \
        --name ${MODEL}_heldout_others --limit 400 --results_dir $RUN/results
    step $RUN/results/win_rate_${MODEL}_vs_sft.json \
        python -m eval.win_rate --model $RUN/$MODEL --opponent $RUN/sft \
        --conversations $RUN/data/conversations_heldout.json --max_new_tokens 48 \
        --name ${MODEL}_vs_sft --results_dir $RUN/results
done
# The page again, with the table "Methods compared".
python -m eval.report --run $RUN
