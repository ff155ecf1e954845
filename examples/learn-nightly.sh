#!/bin/sh
# Train on the saved feedback, and deploy the result if it is clearly better than what is served.
#
#   examples/learn-nightly.sh FEEDBACK WEIGHTS RELOAD [OPTION...]
#
# FEEDBACK  the folder of CAT_COLLECT
# WEIGHTS   the file of CAT_WEIGHTS, mine.safetensors; it is replaced
# RELOAD    a command that sends SIGHUP: 'systemctl reload cat', 'docker kill --signal HUP cat'
# OPTION    more options of `python -m training fit`, such as --epochs 5
#
# Run it in the folder of the repository. About a quarter of the pictures are held back, every night
# the same ones: those whose names, which are made from their content, end in 0 to 3. No network
# ever learns from them, so the served and the new one are compared fairly.
set -eu
if [ $# -lt 3 ]; then sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2; fi
feedback=$(cd "$1" && pwd) weights=$2 reload=$3
shift 3
python=${PYTHON:-.venv/bin/python}
new=${weights%.safetensors}-new

split=$(mktemp -d)
trap 'rm -rf "$split"' EXIT
for class in "$feedback"/*/; do
    name=$(basename "$class")
    mkdir -p "$split/learn/$name" "$split/held-back/$name"
    find "$class" -type f ! -name '*[0-3].*' -exec ln -s {} "$split/learn/$name" \;
    find "$class" -type f -name '*[0-3].*' -exec ln -s {} "$split/held-back/$name" \;
done

rm -rf "$new-training" # of a night that was interrupted
"$python" -m training fit "$split/learn" --validation "$split/held-back" --from "$weights" \
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
