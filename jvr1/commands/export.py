"""A model as an HF folder that transformers and vLLM load: jvr1 export SRC OUT [--peft]

Published names, sharded safetensors, tokenizer.
Adapters (LoRA) are merged into the weights; --peft writes them alone, as a folder that `peft` loads onto the base.
"""

from __future__ import annotations

import argparse
import json
import re
import time

import jax
from etils import epath
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.command_line import Parser
from jvr1.data import processor
from jvr1.data.chat import ends_of
from jvr1.errors import UserError, run_main
from jvr1.model import hf, peft
from jvr1.model.lora import ADAPTERS
from jvr1.model.media import PixelLimits
from jvr1.opening.models import CHECKPOINTS, Model, locate, make_tokenizer, open_model, read_lora
from jvr1.opening.staging import appearing
from jvr1.processes.guard import explaining
from jvr1.sharding import make_mesh, path_name

HOST_DEVICES = 8
"""Parts in which parameters pass through host memory."""


def main(arguments: list[str] | None = None) -> None:
    with explaining():
        export(options().parse_args(arguments))


def options() -> Parser:
    parser = Parser(prog="jvr1 export", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="workdir, checkpoint, converted folder, HF folder or hub id")
    parser.add_argument("out", metavar="OUT", help="a new folder (local or gs://)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the tensors written; default: bfloat16, with --peft float32",
    )
    parser.add_argument("--peft", action="store_true", help="write the adapters of a LoRA run alone, for `peft`")
    parser.add_argument("--min-pixels", type=int, help="least pixels of an image in training, for the processor's file")
    parser.add_argument("--max-pixels", type=int, help="most pixels of an image in training, for the processor's file")
    return parser


def export(args: argparse.Namespace) -> None:
    # before anything asks for devices, as finding a checkpoint does
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    source = epath.Path(args.source)
    pixels = read_pixels(args.min_pixels, args.max_pixels)
    trained = trained_config(source)
    folder = locate(args.source).folder
    lora = read_lora(folder)
    if args.peft and lora is None:
        raise UserError(f"{args.source} has no adapters, so --peft has nothing to write; leave it out")
    start = time.perf_counter()
    hf.claim_folder(epath.Path(args.out))  # before the model is read
    mesh = make_mesh({"fsdp": HOST_DEVICES})
    dtype = args.dtype or ("float32" if args.peft else "bfloat16")
    # a sum with adapters is rounded once, at its end
    model = open_model(args.source, mesh, param_dtype=dtype if lora is None else kept_dtype(folder))
    with appearing(args.out) as out:
        if args.peft and lora is not None:
            base = None if trained is None else trained.model.source
            peft.save_adapters(model.params, model.config, lora, out, dtype=dtype, base=base)
        else:
            files = exported_files(model, trained, pixels)
            hf.save(model.params, model.config, out, carried=files, dtype=dtype, lora=lora)
    written = [path.stat().length for path in epath.Path(args.out).glob("*.safetensors")]
    print(
        f"{args.source} -> {args.out}: {count(model.params, adapters=args.peft):,} parameters, "
        f"{sum(written) / 1e9:.2f} GB in {dtype}, {len(written)} shards, {time.perf_counter() - start:.1f} s"
    )
    if not args.peft:
        if advice := model.config.family.advice:
            print(advice.format(out=args.out))
        print(about_sampling(model, trained))


def kept_dtype(folder: epath.Path) -> str:
    """The dtype in which our own folder keeps its parameters."""
    return json.loads((folder / hf.CONFIG).read_text())["torch_dtype"]


def count(params: dict, *, adapters: bool) -> int:
    """Numbers in the adapters, or in all else."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(x.size for path, x in leaves if bool(re.fullmatch(ADAPTERS, path_name(path))) == adapters)


def read_pixels(least: int | None, most: int | None) -> tuple[int, int] | None:
    """Both limits or neither; raises UserError otherwise, or when they are no range."""
    if least is None and most is None:
        return None
    if least is None or most is None or not 0 < least <= most:
        raise UserError(f"--min-pixels {least} and --max-pixels {most} must both be given, 0 < min <= max")
    return least, most


def trained_config(source: epath.Path) -> ConfigDict | None:
    """The config.json of the workdir that the source is or lies in; None where there is none. Raises UserError."""
    workdir = source.parent.parent if source.parent.name == CHECKPOINTS else source
    path = workdir / "config.json"
    if not (workdir / CHECKPOINTS).is_dir() or not path.exists():
        return None
    try:
        return settings.from_json(path.read_bytes().decode(errors="replace"), str(workdir))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def exported_files(model: Model, trained: ConfigDict | None, pixels: tuple[int, int] | None) -> dict[str, bytes]:
    """The model's files beside its weights, which say of media and sampling what the training did, as far as that is
    known: of a workdir; of image limits that are given."""
    files, form = model.carried, model.config.family.processor
    if trained is not None:
        video, image = settings.pixel_limits(trained)
        image = image if pixels is None else PixelLimits(*pixels)
        of_video = form.video(settings.video_sampling(trained), video, model.config.vision.factor)
        files = processor.processor_files(files, model.config, form.image(image), of_video)
        sampling = {name: trained.sampling[name] for name in ("temperature", "top_k", "top_p")}
        files = processor.generation_file(files, ends(model), **sampling)
    elif pixels is not None:
        files = processor.processor_files(files, model.config, form.image(PixelLimits(*pixels)), None)
    return files | model.config.family.companions()


def ends(model: Model) -> tuple[int, ...]:
    """Ids that end a completion in training."""
    return ends_of(make_tokenizer(model.carried, model.config, model.source), model.carried, model.config)


def about_sampling(model: Model, trained: ConfigDict | None) -> str:
    """What the folder's generation_config.json does to answers."""
    strength = processor.penalty(model.carried)
    if trained is not None:
        told = "samples as the training did"
        return f"{processor.GENERATION} {told}" + (
            "" if strength == 1 else f"; the source's repetition_penalty of {strength:g} is left out"
        )
    if strength != 1:
        return (
            f"{processor.GENERATION} is the source's: its repetition_penalty of {strength:g} makes generate answer "
            f"otherwise than jvr1, which applies none; repetition_penalty=1.0 turns it off"
        )
    return (
        f"{processor.GENERATION} is the source's"
        if processor.GENERATION in model.carried
        else f"no {processor.GENERATION}"
    )


if __name__ == "__main__":
    run_main(main)
