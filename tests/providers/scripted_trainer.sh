# Plays a trainer: one step, one adapter, done. The job's folder is where its job file lies.
folder=$(dirname "$1")
if grep -q '"kind":"done"' "$folder/events.jsonl" 2>/dev/null; then exit 0; fi
mkdir -p "$folder/adapter" && : > "$folder/adapter/weights" || exit 5
echo run >> "$folder/runs" || exit 5
printf '%s\n' '{"kind":"step","step":1,"total_steps":1,"train_loss":1.0,"token_accuracy":0.5}' \
  "{\"kind\":\"done\",\"step\":1,\"total_steps\":1,\"folder\":\"$folder/adapter\",\"trained_tokens\":7}" \
  >> "$folder/events.jsonl" || exit 5
