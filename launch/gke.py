"""Prints the manifest of a run on GKE: a JobSet with one pod a host.

python launch/gke.py tpu --image IMAGE --bucket BUCKET [OPTIONS] -- COMMAND... | kubectl apply -f -
python launch/gke.py gpu --image IMAGE --bucket BUCKET [OPTIONS] -- COMMAND... | kubectl apply -f -

COMMAND reaches the pods word for word, without a shell; IMAGE has jvr1 in /jvr1. What follows from the hosts is added:
a training command's batch.micro where its rows would not split over the chips, and on several GPU hosts --coordinator,
--processes and --process. Every host runs its own launch/retry.sh, which restarts what a restart of the process mends.
A pod that ends otherwise fails its Job, and the JobSet makes all pods anew; exit code 2 ends the JobSet at once.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import yaml

from jvr1 import config as settings
from jvr1.command_line import Parser
from jvr1.errors import UserError, run_main
from jvr1.sharding import mesh_sizes

PORT = 8476
RESTARTS = 100
"""Of a JobSet; on spot nodes each preemption is one."""
GRACE_SECONDS = 600
"""For a step and a save; spot machines give less, see docs/launch.md."""
AXES = {"tpu-v4-podslice": 3, "tpu-v5-lite-podslice": 2, "tpu-v5p-slice": 3, "tpu-v6e-slice": 2}
"""Sizes in the topologies of accelerators."""
INDEX = "$(JOB_COMPLETION_INDEX)"
"""Kubernetes puts the number of the pod here."""
TRAINING = ("train-sft", "train-rl", "train-bestofn")
"""Commands of jvr1, and as python -m jvr1.train_rl modules."""

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_IMAGE = (
    r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]+)?/)?"
    r"[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
FORMS = {
    "name": (r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "small letters, digits and - inside, a letter first, as jvr1-rl"),
    "secret": (r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "small letters, digits, - and . inside, as jvr1"),
    "service_account": (r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "small letters, digits, - and . inside, as jvr1"),
    "image": (_IMAGE, "an image, as us-docker.pkg.dev/PROJECT/REPOSITORY/jvr1:tpu"),
    "bucket": (r"[a-z0-9][-a-z0-9_.]{1,220}[a-z0-9]", "a bucket's name, without gs:// and folders"),
    "accelerator": (_LABEL, "the name of an accelerator on GKE, as tpu-v6e-slice or nvidia-h100-80gb"),
    "topology": (r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}", "numbers of chips, as 4x4 or 2x2x2"),
}
"""Option -> pattern (Kubernetes' RFC 1123 and 1035, GCS's and the image reference's) and what would be right."""


@dataclass(frozen=True)
class Pods:
    """One a host. group: the name of their Job in the JobSet; resource: what their chips are called."""

    hosts: int
    chips: int
    group: str
    resource: str
    selector: dict[str, str]
    launcher: str
    environment: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    args, command = read_arguments(sys.argv[1:] if arguments is None else arguments)
    pods = tpu_pods(args) if args.kind == "tpu" else gpu_pods(args)
    longest = f"{args.name}-{pods.group}-0-{pods.hosts - 1}-xxxxx"  # of a pod; it is a host's name as well
    if len(longest) > 63:
        raise UserError(f"--name {args.name} is {len(longest) - 63} characters too long for the names of its pods")
    words = escaped([*command, *fitted(command, pods.hosts * pods.chips)])
    if args.kind == "gpu" and pods.hosts > 1:
        first = f"{args.name}-{pods.group}-0-0.{args.name}:{PORT}"  # JOBSET-GROUP-JOB-POD.SUBDOMAIN
        words += ["--coordinator", first, "--processes", f"{pods.hosts}", "--process", INDEX]
    sys.stdout.write(written(jobset(args, pods, [pods.launcher, "--", *words])))
    return 0


# --- what is given


def read_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the words of the command. Raises UserError."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    args = _parser().parse_args(arguments[:split])
    command = list(arguments[split + 1 :])
    for option, (pattern, right) in FORMS.items():
        given = getattr(args, option, None)
        if given is not None and not re.fullmatch(pattern, given):
            raise UserError(f"--{option.replace('_', '-')} {given!r} is not {right}")
    if not command:
        raise UserError("no command after --; python launch/gke.py --help lists what there is")
    check_words(command)
    return args, command


def _parser() -> Parser:
    summary, *rest = (__doc__ or "").splitlines()
    parser = Parser(
        prog="python launch/gke.py", description=summary, epilog="\n".join(rest),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="tpu|gpu")
    tpu = kinds.add_parser("tpu", help="one slice, on a node pool of its own")
    gpu = kinds.add_parser("gpu", help="nodes with GPUs")
    for kind, each in (("tpu", tpu), ("gpu", gpu)):
        each.add_argument("--image", required=True, help="with jvr1 in /jvr1")
        each.add_argument("--bucket", required=True, help="what XLA compiles is kept in gs://BUCKET/xla")
        each.add_argument("--name", default=f"jvr1-{kind}", help="of the JobSet; default %(default)s")
        each.add_argument("--spot", action="store_true", help="on spot nodes")
        each.add_argument("--service-account", default="jvr1", help="that may use the bucket; default %(default)s")
        each.add_argument("--secret", default="jvr1", help="Secret for the environment, if there; default %(default)s")
    tpu.add_argument("--accelerator", default="tpu-v6e-slice", help="default %(default)s")
    tpu.add_argument("--topology", default="4x4", help="chips of the slice; default %(default)s")
    tpu.add_argument("--chips", type=int, help="of a host; default 4")
    gpu.add_argument("--accelerator", default="nvidia-h100-80gb", help="default %(default)s")
    gpu.add_argument("--hosts", type=int, default=1, help="nodes; default %(default)s")
    gpu.add_argument("--gpus", type=int, default=8, help="of a node; default %(default)s")
    return parser


def check_words(command: Sequence[str]) -> None:
    """Raises UserError for words that are not UTF-8 and for secrets among them."""
    for word in command:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!r} of the command is not UTF-8") from None
    check = [str(Path(__file__).with_name("secrets.sh")), "--check", "--", *command]
    done = subprocess.run(check, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(done.stderr.strip().removeprefix("error: ").replace("a file for --secrets", "the Secret"))


def tpu_pods(args: argparse.Namespace) -> Pods:
    """The hosts of a slice. Raises UserError."""
    sizes = [int(n) for n in args.topology.split("x")]
    axes = AXES.get(args.accelerator, len(sizes))
    if len(sizes) != axes:
        raise UserError(f"--topology {args.topology}: one of {args.accelerator} has {axes} sizes")
    chips = math.prod(sizes)
    of_host = min(4, chips) if args.chips is None else args.chips
    if of_host < 1 or chips % of_host:
        raise UserError(f"--topology {args.topology} has {chips} chips, no multiple of --chips {of_host} a host")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": args.accelerator,
        "cloud.google.com/gke-tpu-topology": args.topology,
    }
    return Pods(chips // of_host, of_host, "slice", "google.com/tpu", selector, "launch/retry.sh", {})


def gpu_pods(args: argparse.Namespace) -> Pods:
    """Nodes with GPUs. Raises UserError."""
    for option in ("hosts", "gpus"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)}; it must be at least 1")
    selector = {"cloud.google.com/gke-accelerator": args.accelerator}
    driver = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}  # where GKE mounts it
    return Pods(args.hosts, args.gpus, "node", "nvidia.com/gpu", selector, "launch/gpu_host.sh", driver)


# --- the command


def _trains(before: str, word: str) -> bool:
    """Whether two words after each other begin a training command: jvr1 train-rl, -m jvr1.train_rl."""
    modules = {f"jvr1.{name.replace('-', '_')}" for name in TRAINING}
    return word in TRAINING if PurePath(before).name == "jvr1" else before == "-m" and word in modules


def fitted(command: Sequence[str], chips: int) -> list[str]:
    """What a training command needs besides, so that its rows split over the chips.

    The rows of a step stay as many: 8 a microbatch and 4 microbatches become 16 and 2 on 16 chips. Raises UserError
    for a command that would end with 2 on the chips.
    """
    main = next((i for i, two in enumerate(pairwise(command), 1) if _trains(*two)), None)
    if main is None:
        return []
    told = settings.parse(command[main:])
    if "://" not in told.workdir:
        raise UserError(f"--workdir {told.workdir} would be in a pod and end with it; use gs://BUCKET/..")
    data, fsdp, _ = mesh_sizes(settings.mesh_shape(told.config), chips)
    ways, micro, steps = data * fsdp, told.config.batch.micro, told.config.batch.per_step
    if micro % ways == 0:
        return []
    if any(word.startswith("--config.batch.") for word in command):
        raise UserError(f"batch.micro is {micro}; on {chips} chips it must be a multiple of {ways}")
    rows = micro * steps
    if rows % ways:
        raise UserError(f"{rows} rows a step do not split over {ways} parts; set --config.batch.micro and per_step")
    more = [f"--config.batch.micro={ways}", f"--config.batch.per_step={rows // ways}"]
    settings.parse([*command[main:], *more])  # other settings may speak of the batch, too
    return more


def escaped(words: Sequence[str]) -> list[str]:
    """Kubernetes expands $(NAME) in a command and takes $$ for $."""
    return [word.replace("$", "$$") for word in words]


# --- the manifest


def jobset(args: argparse.Namespace, pods: Pods, command: list[str]) -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2)."""
    metadata: dict[str, Any] = {"name": args.name}
    if args.kind == "tpu":  # a slice is a node pool
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    mistake = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": RESTARTS,
                "restartStrategy": "BlockingRecreate",  # never two runs in one workdir
                "rules": [mistake],
            },
            "replicatedJobs": [
                {"name": pods.group, "replicas": 1, "template": {"spec": job(pods.hosts, pod(args, pods, command))}}
            ],
        },
    }


def job(hosts: int, spec: dict[str, Any]) -> dict[str, Any]:
    """A Job of one pod a host; exit code 2 is the only one that ends it as a mistake."""
    mistake = {"action": "FailJob", "onExitCodes": {"containerName": "jvr1", "operator": "In", "values": [2]}}
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [mistake]},
        "template": {"spec": spec},
    }


def pod(args: argparse.Namespace, pods: Pods, command: list[str]) -> dict[str, Any]:
    """A host's pod. Decoded frames and NCCL pass through /dev/shm, which is 64 MB by itself."""
    environment = {"JAX_COMPILATION_CACHE_DIR": f"gs://{args.bucket}/xla", **pods.environment}
    spot = {"cloud.google.com/gke-spot": "true"} if args.spot else {}
    container = {
        "name": "jvr1",
        "image": args.image,
        "workingDir": "/jvr1",
        "command": command,
        "envFrom": [{"secretRef": {"name": args.secret, "optional": True}}],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"limits": {pods.resource: pods.chips}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "serviceAccountName": args.service_account,
        "nodeSelector": {**pods.selector, **spot},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


class _Dumper(yaml.SafeDumper):
    """Every string in quotes: PyYAML leaves plain what other readers take for numbers, as 1e3."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:  # our own words
            key.style = None
        return node


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
_Dumper.ignore_aliases = lambda *_: True


def written(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=sys.maxsize)


if __name__ == "__main__":
    run_main(main)
