#!/usr/bin/env bash
# Runs the benchmarks of one kind, one after another; one that fails is named at the end and does not stop the rest.
# Each script says in one line how: "# bench: cpu, 3 min: ARGUMENTS", or "# bench: by hand: why".
# MINUTES=60 make bench also runs those that take so long (10 without it).
set -uo pipefail
cd "$(dirname "$0")/.."
kind=${1:?cpu or gpu}
most=${MINUTES:-10}
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH=src
failed=()
for script in benchmarks/*.py; do
  mark=$(sed -n 's/^# bench: //p' "$script" | head -1)
  case $mark in
    "by hand"*) echo "-- $script left out, ${mark#by hand: }" ;;
    "$kind, "*)
      minutes=${mark#"$kind", }; minutes=${minutes%% min:*}; arguments=${mark#* min:}
      if [ "$minutes" -gt "$most" ]; then
        echo "-- $script left out, about $minutes minutes: MINUTES=$minutes make bench"
        continue
      fi
      echo "== $script, about $minutes minutes"
      # The arguments are words of our own line above.
      # shellcheck disable=SC2086
      python "$script" $arguments || failed+=("$script") ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
