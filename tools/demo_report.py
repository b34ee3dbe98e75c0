"""Table and curves of a demo: python tools/demo_report.py OUT. Reads what the runs wrote, nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jvr1.errors import UserError, run_main
from jvr1.eval.report import percent

STAGES = {"initial": "random", "sft": "after SFT", "rl": "after T-GRPO"}
MAIN = "order"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo_report.py", description=__doc__)
    parser.add_argument("out", type=Path, nargs="+", help="folder that tools/demo.sh wrote; several: one line each")
    outs = parser.parse_args(sys.argv[1:]).out
    if len(outs) > 1:
        print(seeds_table(outs))
        return 0
    return report(outs[0])


def report(out: Path) -> int:
    """Writes and prints one run's table and curves; 1 when the export answers otherwise than the model."""
    tasks = read(out / "data" / "tasks.json")
    results = {stage: read(out / "eval" / stage / "report.json")["tasks"] for stage in STAGES}
    table = as_table(tasks, results)
    (out / "table.md").write_text(table + "\n")
    draw(curves(out), out / "curves.png", tasks[MAIN]["ceiling"])
    same = (out / "eval" / "rl" / "answers.jsonl").read_bytes() == (out / "eval" / "hf" / "answers.jsonl").read_bytes()
    print(table)
    print(f"\nAccuracy in %, ordered / shuffled frames; format rate and tokens after T-GRPO. {out / 'table.md'}")
    print(f"The exported HF folder gives {'the same answers, every one' if same else 'OTHER answers'}: {out / 'hf'}")
    print(f"Curves: {out / 'curves.png'}. The cold start was stopped early on purpose, to leave room for RL;")
    print("nothing here says that T-GRPO does better than plain GRPO.")
    return 0 if same else 1


def seeds_table(outs: list[Path]) -> str:
    """Several runs: the main task before and after T-GRPO, ordered / shuffled."""
    lines = [["seed", "questions", "after SFT", "after T-GRPO", "gain"], ["---", *["---:"] * 4]]
    for out in outs:
        reports = {stage: read(out / "eval" / stage / "report.json") for stage in ("sft", "rl")}
        sft, rl = (reports[stage]["tasks"][MAIN] for stage in ("sft", "rl"))
        seed = read(out / "rl" / "config.json")["seed"]
        gain = f"{100 * (rl['ordered'] - sft['ordered']):+.1f}"
        lines.append([str(seed), str(rl["questions"]), both(sft), both(rl), gain])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run tools/demo.sh first") from None


def as_table(tasks: dict, results: dict) -> str:
    """Accuracy in percent, ordered / shuffled, of each stage beside the ceiling of who cannot tell the order."""
    head = ["task", "questions", "time-blind ceiling", *STAGES.values(), "format", "tokens"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    order = sorted(
        results["rl"], key=lambda task: (tasks[task]["hard"], not tasks[task]["temporal"], task != MAIN, task)
    )
    for task in order:
        last = results["rl"][task]
        cells = [both(results[stage].get(task)) for stage in STAGES]
        ceiling = percent(tasks[task]["ceiling"]) if tasks[task]["temporal"] else ""
        name = f"{task} (hard)" if tasks[task]["hard"] else task
        lines.append([name, str(last["questions"]), ceiling, *cells, percent(last["format"]), f"{last['length']:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both(result: dict | None) -> str:
    if result is None:
        return ""
    return percent(result["ordered"]) + ("" if result["shuffled"] is None else f" / {percent(result['shuffled'])}")


def curves(out: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Validation accuracy on the main task by step, of the cold start and of T-GRPO, from their event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage in ("sft", "rl"):
        events = EventAccumulator(str(out / stage / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        found[stage] = {
            variant: [(e.step, e.value) for e in events.Scalars(f"valid/{MAIN}/{variant}")]
            for variant in ("ordered", "shuffled")
        }
    return found


def draw(found: dict, path: Path, ceiling: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for ax, (stage, title) in zip(axes, (("sft", "cold start (SFT)"), ("rl", "T-GRPO")), strict=True):
        for variant, style in (("ordered", "-"), ("shuffled", "--")):
            steps, values = zip(*found[stage][variant], strict=True)
            ax.plot(steps, [100 * v for v in values], style, label=f"{variant} frames")
        ax.axhline(100 * ceiling, color="grey", linewidth=0.8, label="time-blind ceiling")
        ax.set(title=title, xlabel="optimizer step", ylim=(0, 100))
    axes[0].set_ylabel(f"held-out '{MAIN}' accuracy, %")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_main(main)
