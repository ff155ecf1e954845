#!/bin/sh
# Train on the saved feedback, and deploy the result if it is clearly better.
#
#   examples/learn-nightly.sh FEEDBACK WEIGHTS RELOAD [OPTION...]
#
# FEEDBACK  the folder of CAT_COLLECT
# WEIGHTS   the file of CAT_WEIGHTS, mine.safetensors; it is replaced
# RELOAD    a command that sends SIGHUP: 'systemctl reload cat', 'docker kill --signal HUP cat'
# OPTION    more options of `python -m training fit`, such as --validation FOLDER
#
# Run it in the folder of the repository. Every night starts from the same weights (START), never
# from those of the night before: those were trained on pictures that are held back tonight.
set -eu
feedback=$1 weights=$2 reload=$3
shift 3
python=${PYTHON:-.venv/bin/python}
new=${weights%.safetensors}-new

rm -rf "$new-training" # of a night that was interrupted
"$python" -m training fit "$feedback" --from "${START:-model/cat.safetensors}" \
    --name "$(basename "$weights" .safetensors)" --output "$new.safetensors" "$@"
verdict=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["comparison"]["verdict"])' \
    "$new-report/metrics.json")
if [ "$verdict" != "clearly better" ]; then
    echo "Not deployed: on held-back pictures it is $verdict. See $new-report/report.html."
    exit 0
fi
mv "$new.safetensors" "$weights"
sh -c "$reload"
echo "Deployed: on held-back pictures it is $verdict."
