#!/usr/bin/env bash
# Breaks the code on purpose and checks that the tests notice.
#
# A mutant is a build tag that turns one safety rule off (see the *_mutant_on.go
# files). For each row of the table the named test must fail under its tag, and as a
# test: a build error, a test that does not exist or a crash before any verdict is
# an error of the table, not a catch.
#
#   scripts/mutants.sh             all of them
#   scripts/mutants.sh latch split those whose tag has one of these words in it
#
# Exit 0: all were caught. 1: one was missed, or a row is in error.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# tag                           package      test regexp
table='
mutant_no_recovery_open         ./raftstore  TestTwoCrashesInARow
mutant_ascending_suffix         ./raftstore  TestSuffixDeletionCrash
mutant_no_latch                 ./raftstore  TestENOSPCLatch
mutant_single_vote_copy         ./raftstore  TestLostVoteIsNoticed
mutant_torn_export              ./engine     TestExportIsOneRevision
mutant_torn_snapshot            ./snapshot   TestSnapshotIsNotTorn
mutant_writer_failure_ignored   ./snapshot   TestFailingWriter
mutant_switch_before_verify     ./snapshot   TestInstallCrashAtEachStep
mutant_apply_again              ./fsm        TestModel
mutant_once_forgotten           ./fsm        TestModel
mutant_waiting_dropped          ./fsm        TestModel
mutant_watch_gap                ./fsm        TestWatch$
mutant_nonvoter_counted         ./consensus  TestNonvoterIsNotCounted
mutant_read_without_round       ./consensus  TestNoStaleReadAfterPause
mutant_heartbeat_fast_path      ./consensus  TestRaft695
mutant_retry_unknown            ./httpapi    TestLostAnswerIsUnknown
mutant_forget_doubt             ./httpapi    TestDoubtStays
mutant_retry_without_key        ./client     TestWritesWithoutAKeyAreRetriedOnlyWhenSafe
mutant_client_forgets_doubt     ./client     TestDoubtStays
mutant_torn_revision            ./client     TestWatchResumesAtEveryByte
mutant_forget_promise           ./cluster    TestFormationCannotSplit
mutant_replace_at_once          ./cluster    TestWipedNodeIsReplacedOnlyAfterSilence
'
limit=${MUTANT_LIMIT:-240s}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wanted() {
  [ ${#filters[@]} -eq 0 ] && return 0
  local f
  for f in "${filters[@]}"; do [[ $1 == *"$f"* ]] && return 0; done
  return 1
}

# try TAG PACKAGE REGEXP: sets verdict (caught, MISSED, ERROR) and detail.
try() {
  local tag=$1 pkg=$2 regexp=$3 bin=$work/$1.test log=$work/$1.log rc
  verdict=ERROR
  [ -d "$pkg" ] || { detail="there is no package $pkg"; return; }
  grep -rlq --include='*.go' "//go:build $tag\$" . || { detail="no file is built for the tag $tag"; return; }
  go test -c -tags "$tag" -o "$bin" "$pkg" >"$log" 2>&1 || { detail="does not build"; return; }
  [ -x "$bin" ] || { detail="$pkg has no tests"; return; }
  (cd "$pkg" && "$bin" -test.list "$regexp") | grep -q '^Test' || { detail="no test matches $regexp"; return; }

  (cd "$pkg" && timeout --kill-after=10s "$limit" "$bin" -test.run "$regexp" -test.count=1) >"$log" 2>&1
  rc=$?
  if [ $rc -eq 0 ]; then
    verdict=MISSED detail="$regexp passes without the rule"
  elif grep -aq '^ *--- FAIL: ' "$log"; then
    verdict=caught detail=$(grep -a -m 1 -o '^ *--- FAIL: [^ ]*' "$log" | sed 's/^ *--- FAIL: //')
  else
    detail="exit $rc without a failed test: $(tail -n 1 "$log")"
  fi
}

filters=("$@")
failed=0 caught=0 ran=0
printf '%-32s %-12s %-8s %6s  %s\n' MUTANT PACKAGE VERDICT TIME DETAIL
while read -r tag pkg regexp; do
  if [ -z "$tag" ] || ! wanted "$tag"; then continue; fi
  start=$SECONDS
  try "$tag" "$pkg" "$regexp"
  printf '%-32s %-12s %-8s %5ss  %s\n' "$tag" "$pkg" "$verdict" "$((SECONDS - start))" "$detail"
  ran=$((ran + 1))
  if [ "$verdict" = caught ]; then
    caught=$((caught + 1))
  else
    failed=$((failed + 1))
    [ -f "$work/$tag.log" ] && tail -n 15 "$work/$tag.log" | sed 's/^/    /'
  fi
done <<<"$table"

# A mutant that nobody runs is a rule that nobody checks.
for tag in $(grep -rhoE --include='*.go' '^//go:build mutant_[a-z0-9_]+$' . | sed 's,//go:build ,,' | sort -u); do
  grep -q "^$tag " <<<"$table" || { printf '%-32s %-12s %-8s\n' "$tag" "?" "UNLISTED"; failed=$((failed + 1)); }
done

if [ $ran -eq 0 ]; then echo "no mutant matches: $*" >&2; exit 1; fi
echo "mutants: $ran tried, $caught caught, $failed missed or in error"
[ $failed -eq 0 ]
