"""Stand-ins for gcloud, srun and others, and how the tests of launch/ run its scripts.

The stand-in for gcloud keeps two workers, each a folder that serves as its home; ssh runs the commands there, so the
scripts' remote parts are run as well.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
RETRY, POD, HOST, SLURM, SECRETS, GKE = (
    LAUNCH / name for name in ("retry.sh", "tpu_pod.sh", "gpu_host.sh", "slurm.sbatch", "secrets.sh", "gke.py")
)
SLICE = ("slice", "--zone", "z", "--type", "v5p-16")
TRAIN = ["python", "-m", "jvr1.train_rl", "--config", "configs/tgrpo_7b.py", "--workdir", "gs://b/it's here"]

GCLOUD = r"""#!/bin/bash
# queries answer with the next line of a file, and for ever with its last
echo "${*:2:4} ${*:6}" >>"$FAKE/calls"
case $4 in
  describe)
    file=$FAKE/$3
    [[ -e $file ]] || exit 1
    head -1 "$file"
    [[ $(wc -l <"$file") -eq 1 ]] || sed -i 1d "$file" ;;
  create) [[ $3 != queued-resources || -e $FAKE/$3 ]] || echo ACTIVE >"$FAKE/queued-resources" ;;
  scp) for w in 0 1; do cat "$5" >"$FAKE/$w/${6#*:}"; stat -c '%a %n' "$FAKE/$w/${6#*:}" >>"$FAKE/copied"; done ;;
  ssh)
    for w in 0 1; do (cd "$FAKE/$w" && HOME=$FAKE/$w exec bash -c "${!#/--command=/}") & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit "${code:-0}" ;;
esac
"""
CURL = r"""#!/bin/bash
cat <<'INSTALLER'
mkdir -p ~/.local/bin
cat >~/.local/bin/uv <<'UV'
#!/bin/bash
echo "uv $*" >>~/installed
mkdir -p .venv/bin
ln -s "$REAL_PYTHON" .venv/bin/python
printf '#!/bin/bash\necho "pip $*" >>~/installed\n' >.venv/bin/pip
echo 'export VENV=active' >.venv/bin/activate
chmod +x .venv/bin/pip
UV
chmod +x ~/.local/bin/uv
INSTALLER
"""
SRUN = r"""#!/bin/bash
echo "srun $* JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS" >>"$FAKE/calls"
if [[ ${SRUN_RUNS-} ]]; then while [[ $1 == --* ]]; do shift; done; exec "$@"; fi
exit "${SRUN_EXIT:-0}"
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*" >>"$FAKE/calls"\n'
PROGRAMS = {"gcloud": GCLOUD, "kubectl": SCONTROL, "srun": SRUN, "scontrol": SCONTROL, "curl": CURL}


def run(*words, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(w) for w in words], cwd=ROOT, capture_output=True, text=True, timeout=60, **more)


def calls(fake) -> list[str]:
    return (fake / "calls").read_text().splitlines()


def kinds(fake) -> list[str]:
    """Calls of gcloud without their options."""
    return [" ".join(c.split()[1:3]) for c in calls(fake) if c.startswith("tpus ")]


def start(*words) -> subprocess.Popen:
    # where the tests run in the background SIGINT is ignored, and bash cannot trap what was ignored when it began
    command = ["env", "--default-signal=INT", *(str(w) for w in words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True, start_new_session=True)


def await_(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
