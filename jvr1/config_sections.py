"""Every setting of a run: what it is by default, its range, what it does and what may change when the run goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jvr1.data.fitting import AutoSettings
from jvr1.data.memory import MAX_DECODED_MB
from jvr1.data.prompts import TEMPLATES
from jvr1.data.rows import no_fields
from jvr1.model.attention import CHOICES
from jvr1.model.families import TOKEN_PIXELS
from jvr1.model.layers import REMAT_POLICIES
from jvr1.model.lora import LoRASettings
from jvr1.model.media import PixelLimits, VideoSampling
from jvr1.model.rounded import EIGHT_BITS
from jvr1.optimizers.config import OptimizerConfig
from jvr1.rl.rewards import MODES
from jvr1.rl.tgrpo import TGRPOConfig
from jvr1.setting import section, setting

FLOATS = ("bfloat16", "float32")


@dataclass(frozen=True)
class ModelSettings:
    source: str = setting(
        "",
        "The model to start from: HF folder, hub id, converted folder, workdir or one of its checkpoints. T-GRPO "
        "measures KL from it",
        needed=True,
    )
    dtype: str = setting("bfloat16", "Of activations and products", one_of=FLOATS)
    param_dtype: str = setting(
        "float32",
        "Of the parameters as kept (with LoRA, of the adapters); at lr 1e-6 a bfloat16 parameter rarely moves",
        one_of=FLOATS,
    )
    rollout_dtype: str = setting(
        "",
        "Of the kernels of the decoder's layers while completions are sampled to learn from: eight bits, with a scale "
        "for each output; empty: model.dtype. Sampling and scoring then differ (loss/logprob_gap): "
        "rl.rollout_correction must be set",
        one_of=("", *EIGHT_BITS),
    )
    remat: str = setting(
        "full",
        "What the backward pass keeps of a layer: none (keep everything), dots (outputs of products), full (its input "
        "only)",
        one_of=REMAT_POLICIES,
        resume="free",
    )
    attention: str = setting(
        "auto",
        "What computes the decoder's attention over prompts and completions: auto (splash on TPUs, cudnn on GPUs, "
        "where they take the dtype and the head size; else xla), xla, splash (TPU), cudnn (GPU, bfloat16). See "
        "docs/pods.md",
        one_of=CHOICES,
        resume="free",
    )
    logit_chunk: int = setting(
        128, "Tokens whose logits exist at a time; larger is faster and takes more memory", least=1, resume="free"
    )
    reference: str = setting(
        "device",
        "Where the model that KL is measured from is kept, in model.dtype: device (split as the trained one is), or "
        "host: in the memory of the hosts, on the device while it scores, before gradients exist. With rl.beta 0 there "
        "is none",
        one_of=("device", "host"),
        resume="free",
    )


@dataclass(frozen=True)
class MeshSettings:
    data: int = setting(1, "Copies of the model")
    fsdp: int = setting(-1, "Ways parameters and optimizer are split, gathered layer by layer")
    tensor: int = setting(1, "Ways heads and MLP are split; must divide the query heads")
    decode_tensor: int = setting(
        0,
        "The same for the copy of the weights that generates, made once a step in model.dtype; over all other axes it "
        "is replicated. 0: on GPUs and TPUs as many as key and value heads and the devices of a process allow, at most "
        "4; on CPUs as mesh.tensor",
        least=0,
    )


@dataclass(frozen=True)
class ModalitySettings:
    text: float = setting(1.0, "How often rows without media are drawn in an epoch; 0 leaves them out", least=0)
    image: float = setting(1.0, "The same for images", least=0)
    video: float = setting(1.0, "The same for videos", least=0)


def _no_template(template: str) -> str | None:
    if "{Question}" in TEMPLATES.get(template, template):
        return None
    return f"must name a template or hold {{Question}}; names: {', '.join(TEMPLATES)}"


def _no_weights(weights: tuple) -> str | None:
    if all(isinstance(weight, int | float) and 0 <= weight < float("inf") for weight in weights):
        return None
    needed = "a number for each file of data.train, none negative or infinite, and 0 leaves a file out"
    return f"is {tuple(weights)}; it must be {needed}"


@dataclass(frozen=True)
class DataSettings:
    root: str = setting(
        "", "Folder or bucket of the question files and, below it, their media", resume="free", of_machine=True
    )
    train: tuple[str, ...] = setting(
        (),
        "Question files under root: JSON, JSONL, Parquet, or a folder of Parquet or that `datasets` saved to disk",
        needed=True,
    )
    fields: tuple[str, ...] = setting(
        (),
        "What the files call a record's fields: `path=video` (the file's name of it), `data_type:video` (a value for "
        "all records); docs/your_data.md",
        wrong=no_fields,
    )
    weights: tuple[float | int, ...] = setting(
        (), "How often each file's rows are drawn in an epoch; empty: once", wrong=_no_weights
    )
    valid: tuple[str, ...] = setting((), "Held-out question files for validation during training", resume="free")
    kinds: tuple[str, ...] = setting(
        (), "Problem kinds of your own, as `module:name` (docs/extending.md#a-problem-kind-of-your-own)"
    )
    modality: ModalitySettings = section(ModalitySettings())
    buckets: tuple[tuple[str | int, ...], ...] = setting(
        (),
        "Static shapes (kind, F steps, W windows a frame, P prompt tokens, C completion tokens), at most 8. A row "
        "takes the cheapest it fits; what fits none is dropped and counted, never cut. auto: fitted to the questions "
        "(data.auto), printed, and kept with the run",
    )
    auto: AutoSettings = section(AutoSettings(), "Of data.buckets=auto")
    max_dropped: float = setting(
        0.05,
        "Share of a file's records that may be dropped (no medium, no bucket) before a run refuses to start; kinds "
        "that data.modality leaves out do not count",
        least=0,
        most=1,
        resume="free",
    )
    max_doubtful: float = setting(
        0.1,
        "Share of a file's records whose solution, options or chain of thought is doubtful (docs/your_data.md) before "
        "a run refuses to start; kinds that data.modality leaves out do not count",
        least=0,
        most=1,
        resume="free",
    )
    video: VideoSampling = section(VideoSampling())
    video_pixels: PixelLimits = section(PixelLimits(128 * TOKEN_PIXELS, 128 * TOKEN_PIXELS), "Frames of a video")
    image_pixels: PixelLimits = section(
        PixelLimits(4 * TOKEN_PIXELS, 256 * TOKEN_PIXELS), "An image", without=("total_pixels",)
    )
    real_seconds: bool = setting(
        True, "Positions in time from the clip's own frame rate; off: one second a step, as Video-R1 trained"
    )
    template: str = setting(
        "reference",
        "Question template: reference, reference-eval, plain, or a text that holds {Question}",
        wrong=_no_template,
    )
    suffixes: bool = setting(True, "Ask for the form of the answer by problem type, as Video-R1 does")
    system: str | None = setting(None, "System prompt; none: the chat template's own; empty: none at all")
    special_tokens_in_text: bool = setting(
        False,
        "Whether `<|im_end|>` and other special tokens that a record's text spells are tokens, as for Video-R1; off: "
        "they are text",
    )
    prompt_form: str = setting(
        "",
        "How a video stands in the prompt, where a model's family has several forms (Qwen3-VL: release, nested; "
        "docs/families.md); empty: the first",
    )
    index: str = setting(
        "", "Folder of indexes (jvr1 index) to share between runs; empty: in the workdir", resume="free"
    )
    index_workers: int = setting(2, "Processes that probe media when an index is made", least=1, resume="free")
    media_cache: str = setting(
        "",
        "Folder for media fetched from a bucket; empty: ~/.cache/jvr1/media",
        resume="free",
        of_machine=True,
    )
    media_cache_gb: int = setting(100, "Its size; the least recently used go first", least=1, resume="free")
    frame_cache: str = setting(
        "",
        "Folder for decoded frames at the model's size, which epochs, runs and hosts may share; empty: none. See "
        "docs/data.md",
        resume="free",
        of_machine=True,
    )
    frame_cache_gb: int = setting(100, "Its size; the least recently used go first", least=1, resume="free")
    workers: int = setting(2, "Processes that decode; 0: a thread of the run", least=0, resume="free", of_machine=True)
    timeout: float = setting(60.0, "Seconds a file may take to decode before its row fails", above=0, resume="free")
    max_decoded_mb: int = setting(
        MAX_DECODED_MB,
        "Megabytes that decoding one medium may take, by its header and in fact; what needs more is dropped or fails "
        "alone. See docs/data.md",
        least=64,
        resume="free",
    )
    max_failed: float = setting(
        0.05, "Share of rows whose media may fail before the run stops", least=0, most=1, resume="free"
    )


@dataclass(frozen=True)
class BatchSettings:
    micro: int = setting(1, "Prompts of a microbatch, over all devices; a multiple of mesh data x fsdp", least=1)
    per_step: int = setting(
        8, "Microbatches of an optimizer step; how a step is cut does not change its gradient", least=1
    )


@dataclass(frozen=True)
class SamplingSettings:
    temperature: float = setting(1.0, "Divides the logits, in sampling and in scoring", above=0)
    top_p: float = setting(
        1.0,
        "Samples from the smallest set of tokens with this probability; scoring is over the whole vocabulary",
        above=0,
        most=1,
    )
    top_k: int = setting(0, "Samples from the k best tokens; 0: all", least=0)


@dataclass(frozen=True)
class SFTSettings:
    loss_on_prompt: bool = setting(False, "Learn prompt and visual placeholders too, as Video-R1's code does")


@dataclass(frozen=True)
class BestOfNSettings:
    threshold: float = setting(
        1.5,
        "Reward that a prompt's best completion must have to be learned; accuracy and format are 1 each at most",
    )


@dataclass(frozen=True)
class GroupSettings:
    group: int = setting(8, "G: completions a prompt on ordered frames", least=2)
    shuffled: int = setting(4, "Completions a video on shuffled frames; no gradient", least=0)
    slots: int = setting(
        0,
        "Prompts decoded at a time, over all devices; 0: all of a step. More prompts, of whatever bucket, take turns "
        "(docs/benchmarks.md)",
        least=0,
    )
    lanes: int = setting(
        0,
        "Completions on ordered frames of a prompt decoded at a time, those on shuffled frames in proportion; 0: all. "
        "Fewer, with more slots, keep the batch full where lengths differ",
        least=0,
        most="group",
    )
    packing: int = setting(
        16,
        "Update and reference read a prompt's completions one after the other, padded together to a multiple of G*C "
        "divided by this. Larger: less padding, more lengths to compile programs for, each when it is first needed. "
        "0: each completion is padded to C tokens (docs/pods.md#packing)",
        least=0,
        resume="free",
    )
    updates: int = setting(
        1,
        "Times a batch of completions is learned from; use clipping with more than one. The schedule counts optimizer "
        "steps, updates x minibatches",
        least=1,
    )
    minibatches: int = setting(
        1,
        "Parts of a batch of completions, each an optimizer step of its own; must divide batch.per_step. With several, "
        "one more pass gives the old log-probabilities",
        least=1,
    )
    refill: int = setting(
        0,
        "Dynamic sampling (DAPO): how often a step draws another batch.micro x batch.per_step prompts while fewer than "
        "refill_share of so many groups have different rewards; groups without any leave the loss. 0: never",
        least=0,
    )
    refill_share: float = setting(1.0, "Of a step's prompts", above=0, most=1)
    format_weight: float = setting(1.0, "Weight of the format reward beside accuracy")


@dataclass(frozen=True)
class RLSettings(TGRPOConfig, GroupSettings):
    """What is sampled and scored of a prompt, and what T-GRPO makes of it."""


def _no_own_weights(weights: tuple) -> str | None:
    for one in weights:
        name, _, number = str(one).rpartition("=")
        try:
            good = bool(name.strip()) and math.isfinite(float(number))
        except ValueError:
            good = False
        if not good:
            return f"holds {one!r}; write a value's name and its weight, such as 'style=0.2'"
    return None


def _no_own_accuracy(names: tuple) -> str | None:
    bad = [one for one in names if not all(part.strip() for part in str(one).rpartition("=")[::2])]
    return f"holds {bad[0]!r}; write a problem type and a value's name, such as 'numerical=close'" if bad else None


@dataclass(frozen=True)
class RewardSettings:
    mode: str = setting("robust", "How accuracy is scored (docs/deviations.md)", one_of=MODES)
    user: str = setting("", "Your own rewards, module:function, several with commas (docs/rewards.md)")
    user_weight: float = setting(1.0, "Weight of each value they give", finite=True)
    user_weights: tuple[str, ...] = setting(
        (), "Other weights by a value's name, as 'style=0.2'", wrong=_no_own_weights
    )
    user_accuracy: tuple[str, ...] = setting(
        (),
        "Problem types whose accuracy is a value of yours, as 'temporal grounding=iou': gates, bonuses, validation and "
        "evaluation follow it",
        wrong=_no_own_accuracy,
    )
    user_timeout: float = setting(2.0, "Seconds a call may take", above=0)
    user_concurrency: int = setting(
        32, "Calls at a time; 1: in the process that imported the module, as for a model on a GPU", least=1
    )
    user_failure: float | None = setting(
        None, "What a call that raises, hangs or returns no number scores; none: its row has no reward", finite=True
    )
    max_failed: float = setting(
        0.1, "Share of rows for which your own rewards may fail before the run stops", least=0, most=1
    )


@dataclass(frozen=True)
class TrainSettings:
    steps: int = setting(1000, "Steps of the run: batches of rows, each once", least=1)
    save_every: int = setting(100, "Steps between checkpoints; every validation saves too", least=1)
    save_minutes: float = setting(
        0.0,
        "Minutes after which the next step saves as well, by the clock of process 0; 0: by steps alone. What a machine "
        "that is taken away without notice may cost",
        least=0,
    )
    keep: int = setting(2, "Latest checkpoints kept, beside the best by stop_metric", least=1)
    validate_every: int = setting(0, "Steps between validations, greedy, ordered and shuffled; 0: never", least=0)
    stop_metric: str = setting(
        "",
        "Validation metric that ends the run early, such as order/ordered, and chooses the best checkpoint",
    )
    stop_value: float = setting(0.0, "Value at which it does")
    pictures_every: int = setting(50, "Steps between completions and frames in TensorBoard; 0: none", least=0)
    samples_every: int = setting(
        10,
        "Steps between questions in the log, each with its best and its worst completion (train_rl); 0: none",
        least=0,
    )
    step_limit: float = setting(
        3600.0,
        "Seconds a step, a validation or the last save may take; beyond, all stacks are printed and the process exits "
        "with code 75. 0: no limit. The first step compiles",
        least=0,
    )
    wandb: str = setting("", "wandb project; empty: TensorBoard only")


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run, as a config file and the command line name them."""

    seed: int = setting(0, "Order of rows, permutations of frames and sampling all follow from it", least=0)
    model: ModelSettings = section(ModelSettings())
    lora: LoRASettings = section(LoRASettings(), "See docs/lora.md")
    mesh: MeshSettings = section(MeshSettings(), "One size may be -1: what the devices leave", resume="free")
    data: DataSettings = section(DataSettings())
    batch: BatchSettings = section(BatchSettings())
    sampling: SamplingSettings = section(
        SamplingSettings(), "Of T-GRPO's completions; at most C tokens of the bucket", resume="tunable"
    )
    sft: SFTSettings = section(SFTSettings(), resume="tunable")
    bestofn: BestOfNSettings = section(
        BestOfNSettings(),
        "Of `jvr1.train_bestofn`, which takes of `rl` only `group` (its n), `format_weight`, `slots` and `lanes`",
        resume="tunable",
    )
    rl: RLSettings = section(RLSettings(), "See docs/deviations.md for what the reference does", resume="tunable")
    reward: RewardSettings = section(RewardSettings(), resume="tunable")
    optimizer: OptimizerConfig = section(OptimizerConfig(), "See docs/optimizers.md", resume="tunable")
    train: TrainSettings = section(TrainSettings(), resume="free")
