#!/usr/bin/env bash
# A model and a domain: the quickstart's model, adapted to NumPy's documentation. Documents → continued pretraining →
# assistant, and the proof: what it gained on the domain, what it lost elsewhere, whether it serves as it was trained.
# For a domain of your own, put your documents in the place of $RUN/numpy/documents and documents_heldout, your
# conversations in that of $RUN/numpy/conversations*.json, and name your model in recipes/configs/adapt/*.yaml. A command
# whose output exists is skipped, so an interrupted run resumes; FRESH=1 starts over, but keeps the quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
OLD=runs/quickstart
RUN=${RUN:-runs/adapt}
CONFIGS=recipes/configs/adapt
. recipes/steps.sh
[ "${FRESH:-0}" = 1 ] && rm -rf "$RUN"
mkdir -p "$RUN/results"
# The model to adapt, and the data it is from: the quickstart's first steps, made if they are absent.
FRESH=0 UNTIL=sft bash recipes/quickstart.sh
# RUN and REPLAY, another folder and another share of replay text, are for eval.adaptation --sweep: copies of the settings.
if [ "$RUN" != runs/adapt ] || [ -n "${REPLAY:-}" ]; then
    REPLAY=${REPLAY:-0.5}
    mkdir -p "$RUN/configs"
    for FILE in "$CONFIGS"/*.yaml; do
        sed -e "s|runs/adapt|$RUN|g" -e "/^  numpy:/s|weight: [0-9.]*|weight: $(python -c "print(1 - $REPLAY)")|" \
            -e "/^  replay:/s|weight: [0-9.]*|weight: $REPLAY|" -e "/weight: 0\(\.0*\)\{0,1\}}/d" "$FILE" \
            > "$RUN/configs/$(basename "$FILE")"
    done
    CONFIGS=$RUN/configs
fi

# The domain: NumPy's docstrings as a folder of files, and questions about 400 of its functions.
step $RUN/numpy \
    python -m data_prep.package_docs --output_dir $RUN/numpy --modules numpy numpy.linalg numpy.fft numpy.random \
    numpy.polynomial numpy.ma numpy.strings numpy.lib.stride_tricks
# Read the files. What is held out is a folder of its own here, so that no document about a name in the questions is.
step $RUN/data \
    python -m data_prep.read_documents $RUN/numpy/documents --rows document --fraction 0 --output_dir $RUN/data
step $RUN/data_heldout \
    python -m data_prep.read_documents $RUN/numpy/documents_heldout --rows document --fraction 0 \
    --output_dir $RUN/data_heldout
# Mix the domain with replay, the documentation of Python, by weights in tokens.
step $RUN/tokens \
    python -m data_prep.mix_corpus --config $CONFIGS/mix.yaml
# Continue the pretraining of the base model on it. (Of an assistant, pretraining on text would undo the chat.)
unfinished $RUN/results/continue_pretraining.json $RUN/base
step $RUN/results/continue_pretraining.json \
    $LAUNCH recipes/continue_pretraining.py $ATTENTION --config $CONFIGS/continue_pretraining.yaml
# A part of the conversations that the old assistant learned from, so that it does not forget them.
step $RUN/replay \
    python -m data_prep.hold_out $OLD/data/conversations.json --fraction 0.01 --train_fraction 0.7 \
    --train $RUN/replay/train.jsonl --heldout $RUN/replay/heldout.jsonl
# Fine-tune it on the conversations of the domain, mixed with these. It starts from the new base model plus what made an
# assistant of the old one.
unfinished $RUN/results/sft.json $RUN/sft
step $RUN/results/sft.json \
    $LAUNCH recipes/sft.py $ATTENTION --config $CONFIGS/sft.yaml
# The proof, before and after, on the domain and elsewhere: bits per byte of the base models (an assistant's say little:
# it has learned to answer, not to write documents), and answers of the assistants. Docstrings quote each other: 2 of 91
# held-out documents of NumPy and 8 of 354 of Python, those that both models were pretrained beside, stand nearly whole in
# others. --max_seen lets so many pass, and the page says how many; leave it out where your documents are apart.
step $RUN/results.json \
    python -m eval.adaptation --before $OLD/sft --after $RUN/sft --before_base $OLD/base --after_base $RUN/base \
    --documents domain=$RUN/data_heldout/documents.jsonl general=$OLD/data/corpus_heldout.jsonl \
    --conversations domain=$RUN/numpy/conversations_heldout.json general=$OLD/data/terse/conversations_heldout.json \
    --trained_on $RUN/data/documents.jsonl $OLD/data/corpus $RUN/numpy/conversations.json $OLD/data/conversations.json \
    --max_seen 0.03 --limit 500 --output_dir $RUN
# Does it answer as it was trained to, wherever it is served?
step $RUN/results/serving_sft.json \
    python -m eval.serving --model $RUN/sft --conversations $RUN/numpy/conversations_heldout.json \
    --results_dir $RUN/results
# What a push to the Hub would send, card and all; without --dry_run it is sent.
python recipes/push_to_hub.py --model $RUN/sft --repo_id you/numpy-assistant --dry_run

printf '\nthe proof: %s\nchat with the result: .venv/bin/python -m eval.chat --model %s\n' "$RUN/adaptation.html" "$RUN/sft"
