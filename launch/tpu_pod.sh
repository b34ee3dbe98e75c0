#!/usr/bin/env bash
# launch/tpu_pod.sh NAME --zone ZONE --type TYPE [--version V] [--spot] [--queued] [--secrets FILE] [--dry-run]
#     -- COMMAND...
#
# Creates the TPU slice NAME (TYPE as v5p-16), or takes the one there; copies this folder's code to all its workers,
# installs it, runs COMMAND on each under launch/retry.sh, and shows their logs until it ends. --queued waits in the
# queue for capacity (queued resources); --spot takes capacity that can be taken away; V: the slice's system image.
# --secrets: lines NAME=VALUE for COMMAND's environment, see launch/secrets.sh; the workers' copy is gone when it starts.
# The run goes on when the connection breaks: the same command again shows it. A slice that was taken away is made
# anew, so that this runs well under launch/retry.sh itself. Ends with COMMAND's exit code, or 75 when it has no slice.
set -euo pipefail

fail() { echo "error: $1; see launch/tpu_pod.sh --help" >&2; exit 2; }
value() { [[ ${2-} && $2 != -* ]] || fail "$1 needs a value"; }

name='' zone='' type='' version='' secrets='' spot=() queued=0 dry=0
while (($#)); do
  case $1 in
    --zone) value "$@"; zone=$2; shift ;;
    --type) value "$@"; type=$2; shift ;;
    --secrets) value "$@"; secrets=$2; shift ;;
    --version) value "$@"; version=$2; shift ;;
    --spot) spot=(--spot) ;;
    --queued) queued=1 ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    -*) fail "unknown option $1 (the command follows --)" ;;
    *) [[ -z $name ]] || fail "unexpected argument $1 (the command follows --)"; name=$1 ;;
  esac
  shift
done
[[ $name && $zone && $type ]] || fail "NAME, --zone and --type are needed"
(($#)) || fail "no command after --"
case $type in # the images that Google names for JAX on each generation
  v5p-*) : "${version:=v2-alpha-tpuv5}" ;;
  v5litepod-*) : "${version:=v2-alpha-tpuv5-lite}" ;;
  v6e-*) : "${version:=v2-alpha-tpuv6e}" ;;
  *) [[ $version ]] || fail "no image is known for $type: give --version (gcloud compute tpus versions list)" ;;
esac
if [[ $secrets ]]; then
  [[ -f $secrets ]] || fail "there is no file of secrets $secrets"
  secrets=$(cd -- "$(dirname -- "$secrets")" >/dev/null; pwd -P)/${secrets##*/}
fi
cd -P "$(dirname "$0")/.."
[[ $secrets != "$PWD"/@(jvr1|configs|tools|launch)/* ]] || fail "$secrets would be copied with the code; put it elsewhere"
launch/secrets.sh --check ${secrets:+"$secrets"} -- "$@"

exec 3>&1
show() { # a command as it can be pasted
  local word
  for word; do
    [[ $word =~ ^[a-zA-Z0-9/=:.,_-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    printf '%s ' "$word" >&3
  done
  echo >&3
}
run() { show "$@"; ((dry)) || "$@" 3>&-; }
copy() { run gcloud compute tpus tpu-vm scp "$1" "$name:$2" --zone "$zone" --worker=all; }
tpu() { run gcloud compute tpus "$1" "$2" "$name" --zone "$zone" "${@:3}"; }
state() { # KIND FIELD STATE_IN_DRY_RUN: of the slice (tpu-vm) or of the request for it (queued-resources)
  if ((dry)); then tpu "$1" describe "--format=value($2)"; echo "$3"
  else gcloud compute tpus "$1" describe "$name" --zone "$zone" "--format=value($2)" 2>/dev/null || echo NONE; fi
}
ssh=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all)
trap 'exit 130' INT TERM

slice=$(state tpu-vm state NONE)
if [[ $slice == READY ]]; then
  echo "# $name is there"
elif ((queued)); then
  request=$(state queued-resources state.state NONE)
  if [[ $request == @(SUSPENDED|FAILED) ]]; then tpu queued-resources delete --force --quiet; request=NONE; fi
  if [[ $request == NONE ]]; then
    tpu queued-resources create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" "${spot[@]}"
  fi
  until request=$(state queued-resources state.state ACTIVE); [[ $request == ACTIVE ]]; do
    [[ $request != @(SUSPENDED|FAILED|NONE) ]] || { echo "tpu_pod.sh: the request for $name is $request" >&2; exit 75; }
    echo "# $(date +%T) $name: $request"
    sleep "${POLL_SECONDS:-30}"
  done
else
  if [[ $slice == @(PREEMPTED|TERMINATED) ]]; then tpu tpu-vm delete --quiet; slice=NONE; fi
  [[ $slice == NONE ]] || { echo "tpu_pod.sh: $name is $slice" >&2; exit 75; }
  tpu tpu-vm create --accelerator-type="$type" --version="$version" "${spot[@]}"
fi

# What the workers do. A run that goes on keeps its code. uv brings Python 3.11 where the system's is older.
# shellcheck disable=SC2016
going='kill -0 "$(cat jvr1.pid 2>/dev/null)" 2>/dev/null'
words=(launch/retry.sh -- "$@") room='rm -f jvr1.secrets'
if [[ $secrets ]]; then
  words=(launch/secrets.sh --once ../jvr1.secrets -- "${words[@]}")
  room+='; (umask 077; : >jvr1.secrets)' # its owner's alone before anything is in it
fi
install="$room; if $going; then exit 0; fi
$(cat <<'WORKER'
set -e
mkdir -p jvr1; tar xzf jvr1.tgz -C jvr1; cd jvr1
if [ ! -x .venv/bin/python ]; then
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv -q --seed --python 3.11 .venv
fi
PYTHON=.venv/bin/python EXTRAS=tpu,gcs,wandb; . tools/setup_env.sh
WORKER
)"
begin="set -e; if $going; then rm -f jvr1.secrets; echo 'a run goes on'; else
set -- $(printf '%q ' "${words[@]}")
$(cat <<'WORKER'
rm -f jvr1.pid jvr1.exit
cd jvr1; . .venv/bin/activate
(setsid nohup bash -c '"$@" & echo $! >~/jvr1.pid; wait $!; echo $? >~/jvr1.exit' jvr1 "$@" \
  >~/jvr1.log 2>&1 </dev/null &)
cd ~; fi
until [ -s jvr1.pid ]; do sleep 0.1; done
tail -n 50 -F --pid="$(cat jvr1.pid)" jvr1.log || true
sleep 1; exit "$(cat jvr1.exit 2>/dev/null || echo 75)"
WORKER
)"

code=jvr1.tgz
((dry)) || code=$(mktemp -d)/jvr1.tgz
run tar czf "$code" --exclude=__pycache__ pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE \
  jvr1 configs tools launch
copy "$code" jvr1.tgz
((dry)) || rm -r "${code%/*}"
run "${ssh[@]}" --command="$install"
if [[ $secrets ]]; then copy "$secrets" jvr1.secrets; fi
show "${ssh[@]}" --command="$begin"
((dry)) || exec "${ssh[@]}" --command="$begin" 3>&- # a signal must reach gcloud
