#!/usr/bin/env bash
# launch/secrets.sh [--once] [--check] [FILE] -- COMMAND...
#
# Runs COMMAND with the variables of FILE in its environment, where neither ps nor a log shows them. Lines of FILE are
# NAME=VALUE, as kubectl's --from-env-file reads them: all after = is the value; empty lines and those that begin with
# # say nothing. It must be its owner's alone (chmod 600). --once removes FILE when it has been read; --check
# runs nothing. A secret that stands in COMMAND itself is refused. Values are never printed.
{ set +x; } 2>/dev/null # bash -x would
set -euo pipefail

fail() { echo "error: $1; see launch/secrets.sh --help" >&2; exit 2; }

once=0 check=0 file=''
while (($#)); do
  case $1 in
    --once) once=1 ;;
    --check) check=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    -*) fail "unknown option $1 (the command follows --)" ;;
    *) [[ -z $file ]] || fail "unexpected argument $1 (the command follows --)"; file=$1 ;;
  esac
  shift
done
(($# || check)) || fail "no command after --"

# what a shell expands there itself, NAME=$(cat FILE), is no secret yet
told="(^|[^A-Za-z0-9_])([A-Za-z0-9_]*(KEY|TOKEN|SECRET|PASSWORD))=[\"']?[^\"'\$[:space:]]"
for word; do
  if [[ $word =~ $told ]]; then
    fail "${BASH_REMATCH[2]} stands in the command, where ps and logs show it; put it into a file for --secrets"
  fi
done

declare -A seen=()
pairs=()
if [[ $file ]]; then
  [[ -r $file && ! -d $file ]] || fail "there is no file of secrets $file that can be read"
  mode=$(ls -ldL -- "$file")
  [[ ${mode:4:6} == ------ ]] || fail "others than its owner may use $file: chmod 600 $file"
  number=0
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1)) line=${line%$'\r'}
    if [[ $line =~ ^[[:space:]]*(#|$) ]]; then continue; fi
    where="line $number of $file"
    [[ $line =~ ^([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || fail "$where is not NAME=VALUE"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [[ $value ]] || fail "$where gives $name no value"
    [[ ! $value =~ ^\".*\"$|^\'.*\'$ ]] || fail "$where has quotes around the value of $name; they would be part of it"
    [[ ! ${seen[$name]-} ]] || fail "$where gives $name again"
    seen[$name]=1 pairs+=("$line")
  done <"$file"
  ((${#pairs[@]})) || fail "$file has no line NAME=VALUE"
fi
if ((check)); then exit 0; fi
if ((once)) && [[ $file ]]; then rm -f -- "$file"; fi
if ((${#pairs[@]})); then export "${pairs[@]}"; fi
exec "$@"
