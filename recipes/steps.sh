# For recipes/quickstart.sh, compare.sh and adapt.sh, which set RUN: how their commands run. Offline, and without notices.
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore
# On Linux, keep memory between steps instead of giving it back to the system: faster on a processor.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
# --quiet: no traceback of accelerate after the error of a recipe.
LAUNCH="accelerate launch --quiet --config_file accelerate_configs/single_process.yaml"

# The YAMLs have the attention that is fast on a processor; a GPU has a better one.
nvidia-smi > /dev/null 2>&1 && ATTENTION="--attn_implementation sdpa" || ATTENTION=

# step OUTPUT COMMAND…: run the command unless its output exists, and note how long it took
step() {
    local output=$1 start=$SECONDS
    shift
    if [ -e "$output" ]; then echo "· $output is there: skipped"; return; fi
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
    printf '%s\t%s\n' "$(basename "$output")" "$((SECONDS - start))" >> "$RUN/results/times.tsv"
}

# unfinished RESULTS FOLDER: let a stage that was interrupted go on, and one whose results were removed start over
unfinished() {
    if [ -e "$2/unfinished.json" ]; then rm -f "$1"; elif [ ! -e "$1" ]; then rm -rf "$2"; fi
}
