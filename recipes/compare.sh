#!/usr/bin/env bash
# After recipes/quickstart.sh: DPO, RLOO, GRPO and best of 8 from the same SFT model, the trained ones at PPO's wall time;
# PPO with the rater itself as reward, on right or wrong only, and beyond its KL budget; the chain from SFT on with two more
# seeds; all of them in one table of the report. A command whose output exists is skipped, so an interrupted run
# resumes. To train a model again, remove its results, its answers_… and its win_rate_….
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=runs/quickstart
RUBRIC=data_prep.rewards.rubric
FACTS="data_prep.rewards.asked_fact data_prep.rewards.all_facts"
. recipes/steps.sh
if [ ! -e $RUN/results/ppo.json ]; then
    echo "error: $RUN/results/ppo.json: no such file or folder; it is made by: recipes/quickstart.sh" >&2
    exit 1
fi

# train NAME RECIPE OPTION…: the stage of the quickstart with other options, into the folder NAME. A recipe names its
# results by its stage, ppo.json: they are written into the model's folder and then moved beside those of the others.
train() {
    $LAUNCH "recipes/$2.py" --config "recipes/configs/quickstart/$2.yaml" \
        --output_dir "$RUN/$1" --results_dir "$RUN/$1" "${@:3}"
    mv "$RUN/$1/$2.json" "$RUN/results/$1.json"
}
# rank COMPLETIONS RANKINGS FUNCTION
rank() {
    python -m data_prep.rank_completions --completions "$1" --by function --function "$3" --output "$2"
}
# sealed NAME SFT: the model NAME against the SFT model that it is from, sampled and greedy, on the wordings that were
# written after all settings were fixed.
sealed() {
    for TEMPERATURE in 1 0; do
        local name=$1_vs_sft_sealed
        [ $TEMPERATURE = 0 ] && name=${name}_greedy
        step "$RUN/results/win_rate_$name.json" \
            python -m eval.win_rate --model "$RUN/$1" --opponent "$RUN/$2" \
            --conversations $RUN/data/conversations_sealed.json --judge $RUBRIC --eval_funcs $FACTS $RUBRIC --limit 1000 \
            --max_new_tokens 48 --temperature $TEMPERATURE --name "$name" --results_dir $RUN/results
    done
}
# all_greedy NAME SFT: the same with greedy answers to all held-out wordings: 1,000 of them show two points of a difference
# in right answers at most.
all_greedy() {
    step "$RUN/results/win_rate_$1_vs_sft_all_greedy.json" \
        python -m eval.win_rate --model "$RUN/$1" --opponent "$RUN/$2" \
        --conversations $RUN/data/conversations_heldout.json --judge $RUBRIC --eval_funcs $FACTS $RUBRIC \
        --max_new_tokens 48 --temperature 0 --name "$1_vs_sft_all_greedy" --results_dir $RUN/results
}

# The time that PPO took here, which the other methods get.
PPO_SECONDS=$(python -c "import json; print(json.load(open('$RUN/results/ppo.json'))['seconds'])")
# Learn from the rankings themselves, without a reward model.
unfinished $RUN/results/dpo.json $RUN/dpo
step $RUN/results/dpo.json train dpo dpo --max_seconds "$PPO_SECONDS" $ATTENTION
# Against the same reward model, each answer compared with others to its prompt instead of with a value model.
unfinished $RUN/results/rloo.json $RUN/rloo
step $RUN/results/rloo.json train rloo rloo --max_seconds "$PPO_SECONDS"
unfinished $RUN/results/grpo.json $RUN/grpo
step $RUN/results/grpo.json train grpo grpo --max_seconds "$PPO_SECONDS"
# PPO with the rater itself as reward, which only a rule can be: what a perfect reward model would give. Its points are
# spread over right and wrong first, so that the units of their spread are larger: a smaller kl_coef, by validation.
unfinished $RUN/results/ppo_rater.json $RUN/ppo_rater
step $RUN/results/ppo_rater.json train ppo_rater ppo --reward_funcs $RUBRIC --reward_weights 0 1 --kl_coef 0.1
# PPO against a reward model that learned from a rater who looks at the asked fact alone.
RIGHT=data_prep.rewards.asked_fact
step $RUN/data/rankings_right_or_wrong.jsonl \
    rank $RUN/data/completions.jsonl $RUN/data/rankings_right_or_wrong.jsonl $RIGHT
step $RUN/data/rankings_heldout_right_or_wrong.jsonl \
    rank $RUN/data/completions_heldout.jsonl $RUN/data/rankings_heldout_right_or_wrong.jsonl $RIGHT
unfinished $RUN/results/reward_right_or_wrong.json $RUN/reward_right_or_wrong
step $RUN/results/reward_right_or_wrong.json \
    train reward_right_or_wrong reward --rankings $RUN/data/rankings_right_or_wrong.jsonl \
    --heldout $RUN/data/rankings_heldout_right_or_wrong.jsonl
unfinished $RUN/results/ppo_right_or_wrong.json $RUN/ppo_right_or_wrong
step $RUN/results/ppo_right_or_wrong.json \
    train ppo_right_or_wrong ppo --reward_model_path $RUN/reward_right_or_wrong \
    --eval_funcs $RIGHT data_prep.rewards.all_facts $RUBRIC --metric_for_best_model asked_fact
# PPO beyond its KL budget on purpose: hardly a leash, and the last model is kept, not the best.
unfinished $RUN/results/ppo_over_budget.json $RUN/ppo_over_budget
step $RUN/results/ppo_over_budget.json \
    train ppo_over_budget ppo --kl_coef 0.01 --stop_on non_finite_loss --total_episodes 18432 --learning_rate 0.001 \
    --load_best_model_at_end false
# The chain with other random numbers from SFT on: its SFT model, its answers, its rankings, its reward model, its PPO.
for SEED in 1 2; do
    S=seed$SEED
    unfinished $RUN/results/sft_$S.json $RUN/sft_$S
    step $RUN/results/sft_$S.json train sft_$S sft --seed $SEED
    step $RUN/data/completions_$S.jsonl \
        python -m data_prep.sample_completions --model $RUN/sft_$S --conversations $RUN/data/prompts_rankings.json \
        --num_return_sequences 4 --batch_size 512 --seed $SEED --output $RUN/data/completions_$S.jsonl
    step $RUN/data/rankings_$S.jsonl rank $RUN/data/completions_$S.jsonl $RUN/data/rankings_$S.jsonl $RUBRIC
    step $RUN/data/completions_heldout_$S.jsonl \
        python -m data_prep.sample_completions --model $RUN/sft_$S --conversations $RUN/data/conversations_heldout.json \
        --limit 400 --num_return_sequences 16 --batch_size 512 --seed 1 --output $RUN/data/completions_heldout_$S.jsonl
    step $RUN/data/rankings_heldout_$S.jsonl \
        rank $RUN/data/completions_heldout_$S.jsonl $RUN/data/rankings_heldout_$S.jsonl $RUBRIC
    unfinished $RUN/results/reward_$S.json $RUN/reward_$S
    step $RUN/results/reward_$S.json \
        train reward_$S reward --seed $SEED --model_name_or_path $RUN/sft_$S --rankings $RUN/data/rankings_$S.jsonl \
        --heldout $RUN/data/rankings_heldout_$S.jsonl
    unfinished $RUN/results/ppo_$S.json $RUN/ppo_$S
    step $RUN/results/ppo_$S.json \
        train ppo_$S ppo --seed $SEED --sft_model_path $RUN/sft_$S --reward_model_path $RUN/reward_$S
    sealed ppo_$S sft_$S
    all_greedy ppo_$S sft_$S
done
sealed ppo sft  # the first seed, from the quickstart
all_greedy ppo sft
# Their greedy answers, and win rates of each against the SFT model that it is from, as in the quickstart. Of the eight it
# measures those that are not measured yet.
python -m eval.run --run $RUN --only answers win_rate \
    --models ppo_seed1 ppo_seed2 ppo_rater ppo_right_or_wrong ppo_over_budget dpo rloo grpo \
    --conversations heldout=$RUN/data/conversations_heldout.json \
    --judge $RUBRIC --eval_funcs $FACTS $RUBRIC --limit 1000 --max_new_tokens 48 --batch_size 512
# No training at all: of 8 answers of the SFT model the one that the reward model likes best.
step $RUN/results/win_rate_best_of_8_vs_sft.json \
    python -m eval.win_rate --model $RUN/sft --best_of 8 --reward_model $RUN/reward --opponent $RUN/sft \
    --conversations $RUN/data/conversations_heldout.json --judge $RUBRIC --eval_funcs $FACTS $RUBRIC --limit 1000 \
    --max_new_tokens 48 --name best_of_8_vs_sft --results_dir $RUN/results
# The page again, with the table "Methods compared".
python -m eval.report --run $RUN
