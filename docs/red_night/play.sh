#!/usr/bin/env bash
# Plays docs/red_night.md: four nightly runs of one backend.
#
#   play.sh [FOLDER]    where the runs are stored (default: a new temporary folder)
#
# Prints the exit status of each command. Exits with 0 if every status is the one that the page says.
set -uo pipefail
cd "$(dirname "$0")/../.."
home=${1:-$(mktemp -d)}
mkdir -p "$home"
here=docs/red_night
cp $here/thresholds.toml "$home/thresholds.toml"
expect() { # expect STATUS COMMAND...
  local wanted=$1 status=0
  shift
  printf '\n$ %s\n' "$*"
  "$@" || status=$?
  printf '[exit status %s]\n' $status
  [ $status = "$wanted" ] || { echo "expected $wanted" >&2; exit 9; }
}
night() { # night STATUS RELEASE [--strict]
  expect "$1" env ACME_RELEASE="$2" pytest benchmarks -q ${3:-} --models tiny_gemma3 \
    --quantizations reference,acme_int8 -k "perplexity or test_divergence or fvu or features" \
    --registry $here/quantizations.toml --thresholds "$home/thresholds.toml" \
    --qsae-dir "$home" --junit-xml "$home/junit.xml"
}
night 0 1 # without --strict, which takes no guesses
first=$home/$(readlink "$home/latest")
expect 0 qsae-bench thresholds update --from "$first" --registry $here/quantizations.toml \
  --thresholds "$home/thresholds.toml"
night 0 1 --strict
green=$home/$(readlink "$home/latest")
night 1 2 --strict
red=$home/$(readlink "$home/latest")
expect 0 cat "$home/junit.xml"
expect 0 cat "$red/summary.md"
expect 0 qsae-bench compare "$red" "$green"
expect 0 qsae-bench history --history "sqlite:///$home/history.sqlite" --model tiny_gemma3 \
  --quantization acme_int8 --metric kl_divergence
night 0 3 --strict
