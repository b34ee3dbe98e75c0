"""Records and an encoder for them: what the tests of the pipeline share."""

from painted import PATIENCE

from jvr1.data.batch import make_buckets
from jvr1.data.cache import MediaCache
from jvr1.data.encode import Encoder
from jvr1.data.prompts import TEMPLATES, PromptStyle
from jvr1.data.records import Record
from jvr1.data.sandbox import Sandbox
from jvr1.model.inputs import Grid
from jvr1.model.media import PixelLimits, VideoSampling

LIMITS = PixelLimits(784, 4 * 784)
ROWS = (("video", 4, 1, 72, 24), ("video", 4, 4, 72, 24), ("image", 1, 1, 72, 24), ("text", 0, 0, 72, 24))
BUCKETS = make_buckets(ROWS)
VIDEO, WIDE, IMAGE, TEXT = BUCKETS


def record(number=0, path="a.mp4", data_type="video", problem="which colour came third?", **changes):
    fields = {"problem_type": "multiple choice", "options": ("A. red", "B. blue"), "solution": "<answer>B</answer>"}
    fields |= {"process": "<think>red then blue</think>", "data_source": "order"} | changes
    return Record(problem_id=number, problem=problem, data_type=data_type, path=path, **fields)


def grids(*tokens):
    """Media of one temporal step with so many visual tokens each."""
    return [Grid(1, 2, 2 * count) for count in tokens]


def encoder(model, tokenizer, read, *, buckets=BUCKETS, targets=True, timeout=PATIENCE, root=".", **changes):
    fields = {
        "style": PromptStyle(TEMPLATES["plain"], suffixes=False),
        "video": VideoSampling(frames=8),
        "video_limits": LIMITS,
        "image_limits": LIMITS,
        "real_seconds": True,
    }
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        read=Sandbox(read, timeout),
        media=MediaCache(str(root)),
        buckets=buckets,
        targets=targets,
        **fields | changes,
    )
