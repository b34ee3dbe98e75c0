"""What a log shows of a step's completions: a group with its rewards and advantages, the frames it was asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from jvr1.data.batch import Arrays, Row
from jvr1.data.records import Record
from jvr1.data.vision import frames_of
from jvr1.model.config import ModelConfig
from jvr1.problems.answers import final_answer
from jvr1.questions.asking import VARIANTS
from jvr1.train.metrics import MetricsWriter, frame_strip
from jvr1.train.rollouts import Rollout

MAX_PICTURES = 4
_QUESTION, _ANSWER = 300, 400
"""Characters shown of a question and of a completion in a line."""


def shown_rows(rollouts: Sequence[Rollout]) -> Iterator[tuple[Rollout, int, Row, Record]]:
    """Those of this process that were asked: their rollout, their place in it, the row and its record."""
    for rollout in rollouts:
        for b, row in enumerate(rollout.micro.rows):
            if row.record is not None and row.error is None:
                yield rollout, b, row, row.record


def log_pictures(writer: MetricsWriter, step: int, rollouts: Sequence[Rollout], config: ModelConfig) -> None:
    """For a few questions the whole group as a table, and the frames; a video's also in the order of its twin."""
    for shown, (rollout, b, _, record) in enumerate(shown_rows(rollouts)):
        if shown == MAX_PICTURES:
            return
        head = f"{asked(record)}\nright: {gold_of(record)}"
        writer.table(step, f"completions/{shown}", head, *group_table(rollout, b))
        if rollout.micro.arrays.visual is None:
            continue
        for variant, first in zip(VARIANTS, (0, rollout.rows[0]), strict=True):
            if variant == VARIANTS[0] or len(rollout.rows) == 2:
                frames = frames_asked(rollout.micro.arrays, b, variant, config)
                said = f"{asked(record)} (right: {gold_of(record)})\n{one_line(rollout.texts[b][first], _ANSWER)}"
                writer.image(step, f"frames/{shown}/{variant}", frame_strip(frames, said))


def group_table(rollout: Rollout, b: int) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row a completion: ordered ones first, the best first, those without a reward last; then those on
    shuffled frames."""
    names = rollout.judged.names if rollout.judged.values is not None else ()
    columns = ["frames", "reward", "advantage", "accuracy", "format", *names, "tokens", "answer", "completion"]
    result, group, rows = rollout.result, rollout.rows[0], []
    for r in [*best_first(rollout, b), *range(group, len(rollout.texts[b]))]:
        score, ordered = rollout.judged.rows[b][r], r < group
        own = [] if rollout.judged.values is None else [f"{value:.3g}" for value in rollout.judged.values[b, r]]
        given = ordered and bool(rollout.judged.scored[b][r])
        rows.append(
            [
                VARIANTS[not ordered],
                f"{result.reward[b, r]:.3g}" if given else "",
                f"{result.advantage[b, r]:+.3g}" if ordered else "",
                f"{score.accuracy:.3g}", f"{score.format:.3g}", *own,
                f"{int(rollout.host.length[b, r])}{'' if rollout.host.ended[b, r] else ', cut off'}",
                score.answer or "", rollout.texts[b][r],
            ]
        )  # fmt: skip
    return columns, rows


def best_first(rollout: Rollout, b: int) -> list[int]:
    """Places of a row's ordered completions: by reward, then those that have none."""
    scored, reward = rollout.judged.scored[b], rollout.result.reward[b]
    return sorted(range(rollout.rows[0]), key=lambda r: -float(reward[r]) if scored[r] else np.inf)


def sample_lines(step: int, rollouts: Sequence[Rollout]) -> list[str]:
    """A question of the step, another at each, with the best and the worst of its completions that have a reward; where
    none has, the first. [] where there is no question."""
    rows = list(shown_rows(rollouts))
    if not rows:
        return []
    rollout, b, _, record = rows[step % len(rows)]
    lines = [f"step {step} asks: {one_line(asked(record), _QUESTION)} [right: {gold_of(record)}]"]
    reward, scored = np.asarray(rollout.result.reward[b]), np.flatnonzero(rollout.judged.scored[b])
    if not len(scored):
        return [*lines, f"  no reward: {one_line(rollout.texts[b][0], _ANSWER)}"]
    for r in dict.fromkeys((scored[reward[scored].argmax()], scored[reward[scored].argmin()])):
        said = one_line(rollout.texts[b][r], _ANSWER)
        lines.append(f"  reward {reward[r]:.3g}, advantage {rollout.result.advantage[b, r]:+.3g}: {said}")
    return lines


def asked(record: Record) -> str:
    return "  ".join([record.problem, *record.options])


def gold_of(record: Record) -> str:
    return final_answer(record.solution) or record.solution.strip()


def one_line(text: str, most: int) -> str:
    """Without line breaks, of a long one its two ends."""
    text = " ".join(text.split())
    half = most // 2 - 2
    return text if len(text) <= most else f"{text[:half]} .. {text[-half:]}"


def frames_asked(arrays: Arrays, b: int, variant: str, config: ModelConfig) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The different frames of a row in the order that the model sees them; those of a video are of one size, images
    each of its own."""
    visual, shuffled = arrays.visual, arrays.shuffled
    assert visual is not None
    assert shuffled is not None
    hw = visual.hw[b]
    real = (hw[..., 0] >= 0).any(axis=(1, 2))
    grids = {frame: grid for pair, grid in zip(visual.pair[b][real], hw[real], strict=True) for frame in pair.tolist()}
    order = (visual.pair if variant == VARIANTS[0] else shuffled)[b][real].reshape(-1)
    frames = dict.fromkeys(order.tolist())  # an image pairs its frame with itself, an odd last one too
    return [frames_of(visual.frames[b][[frame]], grids[frame], config.vision.patch)[0] for frame in frames]
