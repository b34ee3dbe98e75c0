"""Makes the embedded data set and the tiny model: jvr1 demo-data OUT [--train N ...].

OUT receives warmup, sft, rl, valid, test and hard.json in Video-R1's form, media/, tasks.json and tiny_model/.
The same settings make the same files; a folder already made with them is left as it is.
The docs' page demo_data says more.
"""

from __future__ import annotations

from pathlib import Path

from jvr1.command_line import Parser
from jvr1.demo.dataset import Settings, building, finish, wanted, write_dataset
from jvr1.demo.tiny_model import TINY_FORMS, write_tiny_model
from jvr1.errors import run_main


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="jvr1 demo-data", description=__doc__)
    default = Settings()
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--train", type=int, default=default.train, help="questions each for warm-up, SFT and RL")
    parser.add_argument("--valid", type=int, default=default.valid, help="questions for validation")
    parser.add_argument("--test", type=int, default=default.test, help="questions for the test; half as many hard ones")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--shortcut", type=float, metavar="SHARE",
        help="draw borders that have the answer's colour in this share of training clips, and by chance in the others",
    )  # fmt: skip
    parser.add_argument(
        "--temporal", type=int, default=default.temporal, metavar="N",
        help="also temporal.json: N questions of each kind whose frames' order matters",
    )  # fmt: skip
    parser.add_argument(
        "--grounding", type=int, default=default.grounding, metavar="N",
        help="also grounding_sft, _rl and _valid.json: N questions for SFT, N for RL, when a square is blue",
    )  # fmt: skip
    parser.add_argument("--family", choices=TINY_FORMS, default=default.family, help="of the tiny model; %(default)s")
    args = parser.parse_args(arguments)
    settings = Settings(
        args.train, args.valid, args.test, args.seed, args.shortcut, args.temporal, args.grounding, args.family
    )
    if not wanted(args.out, settings):
        print(f"{args.out} is already made with these settings")
        return
    partial = building(args.out)
    write_dataset(partial, settings)
    write_tiny_model(partial / "tiny_model", settings.seed, settings.family)
    finish(partial, args.out, settings)
    print(f"made {args.out}")


if __name__ == "__main__":
    run_main(main)
