#!/usr/bin/env bash
# launch/retry.sh [--times N] [--wait SECONDS] [--progress SECONDS] [--dry-run] -- COMMAND...
#
# Runs COMMAND. Starts it again after SECONDS (10) when it ends with 75 ("start me again") or crashes, at most N (10)
# times in a row; a run of --progress (1800) seconds or more makes the count begin anew. 0 (done) and 2 (a mistake
# that no restart mends) are final. SIGTERM and SIGINT are passed on, and then COMMAND is not started again.
# Ends with COMMAND's exit code, 75 when the signal killed it, or 1 when it gives up. Each host runs its own.
set -uo pipefail

fail() { echo "error: $1; see launch/retry.sh --help" >&2; exit 2; }
number() { [[ ${2-} =~ ^(0|[1-9][0-9]*)$ ]] || fail "$1 needs a whole number"; }

times=10 pause=10 progress=1800 dry=0
while (($#)); do
  case $1 in
    --times) number "$@"; times=$2; shift ;;
    --wait) number "$@"; pause=$2; shift ;;
    --progress) number "$@"; progress=$2; shift ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1 (the command follows --)" ;;
  esac
  shift
done
(($#)) || fail "no command after --"
if ((dry)); then printf '%q ' JVR1_EXIT_ON_PREEMPTION=75 "$@"; echo; exit 0; fi
type "$1" >/dev/null 2>&1 || fail "there is no command $1"

export JVR1_EXIT_ON_PREEMPTION=75
set -m # the command gets a process group of its own, so that Ctrl-C reaches it once: from here
signals=0 pid=
pass_on() { signals=$((signals + 1)); [[ -z $pid ]] || kill -"$1" "$pid" 2>/dev/null; }
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

restarts=0
while :; do
  began=$SECONDS
  "$@" </dev/null &
  pid=$!
  ((signals == 0)) || kill -TERM "$pid" 2>/dev/null # a signal that came just before
  until seen=$signals; wait "$pid"; code=$?; ((seen == signals)); do :; done # a signal ends wait early
  # what it left running ends by itself and takes its shared memory along; what does not, is ended
  for ((tries = 0; tries < 50; tries++)); do kill -0 -- "-$pid" 2>/dev/null || break; sleep 0.1; done
  kill -KILL -- "-$pid" 2>/dev/null
  if ((signals && (code == 143 || code == 130))); then exit 75; fi # too early for it to end by itself
  if ((code == 0 || code == 2 || signals)); then exit "$code"; fi
  pid=
  ((SECONDS - began < progress)) || restarts=0
  if ((restarts == times)); then echo "retry.sh: exit code $code, giving up after $times restarts" >&2; exit 1; fi
  restarts=$((restarts + 1))
  echo "retry.sh: exit code $code, restart $restarts of $times in $pause s" >&2
  sleep "$pause" >/dev/null 2>&1 &
  pid=$! # what a signal ends now
  ((signals == 0)) || kill "$pid" 2>/dev/null
  wait "$pid"
  ((signals == 0)) || exit "$code"
  pid=
done
