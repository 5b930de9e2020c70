#!/usr/bin/env bash
# One issue for all nights: opened when one is red, commented while they stay red, closed when one is green.
#
#   nightly-issue.sh SUMMARY    with GH_TOKEN, GH_REPO, RESULT, STATUS and RUN_URL set
#
# RESULT is the job's (success, failure, cancelled), STATUS pytest's exit status, '' where it did not end.
set -euo pipefail

page=$1
label=nightly-gpu
open=$(gh issue list --state open --label "$label" --limit 1 --json number --jq '.[0].number // empty')

if [ "$RESULT" = success ]; then
  if [ -n "$open" ]; then
    gh issue close "$open" --comment "Green again: $RUN_URL"
  fi
  exit 0
fi

case "$STATUS" in
  1) title="Nightly GPU gate: regression" ;;
  3) title="Nightly GPU gate: no regression seen, but nothing measured, invalid, or not stored" ;;
  2 | 4) title="Nightly GPU gate: could not start, options or files are wrong" ;;
  *) title="Nightly GPU gate: did not finish" ;;
esac

body=$(mktemp)
trap 'rm -f "$body"' EXIT
printf '%s (exit status %s).\n\n%s\n\n' "$title" "${STATUS:-unknown}" "$RUN_URL" > "$body"
if [ -s "$page" ]; then
  # an issue holds 65 536 characters; iconv drops the half of one where the page was cut
  head -c 60000 "$page" | iconv -c -f utf-8 -t utf-8 >> "$body" || true
fi

if [ -n "$open" ]; then
  gh issue edit "$open" --title "$title"
  gh issue comment "$open" --body-file "$body"
else
  gh label create "$label" --force --color B60205 --description "the nightly GPU gate is red"
  gh issue create --title "$title" --label "$label" --body-file "$body"
fi
