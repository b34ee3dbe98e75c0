"""One process of a run: the gradient of one optimizer step on several meshes, against one device's.

One device reads completions padded; the meshes read them on tapes, but for PADDED.

python driver.py OUT COORDINATOR PROCESSES PROCESS MESH...     a MESH is data x fsdp x tensor, such as 2x2x2
Process 0 writes OUT: {mesh: largest relative difference of a parameter's gradient, loss, places of every process}.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from step_cases import ROWS, as_task, make_rows, make_scores

from jvr1.data.batch import stack_examples
from jvr1.model import vision_language
from jvr1.model.families import from_hf
from jvr1.processes.peers import Peers, connect, gather, share_of
from jvr1.rl import tgrpo
from jvr1.rollout.decoder import make_decoder
from jvr1.sharding import AXES, make_mesh, param_shardings, path_name, put_batch, replicated
from jvr1.train.packing import tape_size, tokens_to_read
from jvr1.train.steps import PolicyBatch, make_advantages, make_policy_gradients, make_reference_scores
from jvr1.train.trees import cast, zeros_like

TEXT = dict(
    model_type="qwen2_5_vl", hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
    intermediate_size=64, vocab_size=96, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False,
    rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}, image_token_id=90, video_token_id=91,
    vision_start_token_id=92, vision_end_token_id=93, initializer_range=0.2,
)  # fmt: skip
VISION = dict(
    depth=2, hidden_size=32, intermediate_size=40, num_heads=4, out_hidden_size=64, patch_size=14,
    spatial_merge_size=2, window_size=112, fullatt_block_indexes=[1], tokens_per_second=2, in_chans=3,
)  # fmt: skip
CONFIG = from_hf(TEXT | {"vision_config": VISION})
ALGORITHM = tgrpo.TGRPOConfig()
SAMPLED = ("2x2x2", "1x1x8")
"""Meshes whose completions are compared too: each costs a compilation."""


def random_params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.15, x.shape).astype(np.float32), shapes)


PADDED = ("1x4x2",)


def step(mesh, sample, packing):
    """Gradient and loss of the step of `train_rl` on replayed completions; with `sample` also completions drawn from a
    fixed key. packing: as rl.packing."""
    graphdef, shapes = vision_language.abstract(CONFIG)
    host = random_params(shapes)
    shardings = param_shardings(host, mesh)
    params = jax.device_put(host, shardings)
    places = share_of(mesh).places(ROWS)
    rows, (scores, ids) = make_rows(CONFIG), make_scores(longest=4)
    scores, ids = jax.tree.map(lambda x: x[np.asarray(places)], (scores, ids))
    with jax.set_mesh(mesh):
        arrays, scores, ids = put_batch((stack_examples([rows[i] for i in places]), scores, ids), mesh)
        result, mask, denominator, _ = make_advantages(ALGORITHM, mesh)(scores, scores.length, ids)
        reference = cast(jax.tree.map(lambda x: x * 1.02, params), "float32")
        tape = tape_size(int(tokens_to_read(mask)[0]), *ids.shape[1:], packing)
        assert (tape is None) == (packing == 0)
        score = make_reference_scores(graphdef, mesh, temperature=0.9, chunk=4)
        anchor = score(reference, arrays, ids, mask, tape=tape)
        gradients = make_policy_gradients(graphdef, ALGORITHM, shardings, temperature=0.9, chunk=4)
        batch = PolicyBatch(
            arrays, ids, anchor, anchor, anchor, np.bool_(True), result.advantage, mask, np.float32(float(denominator))
        )
        total, loss, _, _, _ = gradients(params, {}, zeros_like(params), batch, tape=tape)
        whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(total)
        if not sample:
            return jax.tree.map(np.asarray, whole), float(loss), None
    decoder = make_decoder(graphdef, mesh, CONFIG, (2,))
    task = as_task(stack_examples([rows[i] for i in places]), (2, 1))
    (done,) = decoder.answers(decoder.weights(params), [task], jax.random.key(7), temperature=1.0)
    tokens = {
        place: row
        for places, rows in gather([places, done.ids.tolist()])
        for place, row in zip(places, rows, strict=True)
    }
    return jax.tree.map(np.asarray, whole), float(loss), [tokens[i] for i in sorted(tokens)]


def difference(got, want):
    """Largest |a - b| / |b| of a parameter's gradient."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True)
    return max((float(np.linalg.norm(a - b) / np.linalg.norm(b)), path_name(path)) for (path, a), b in leaves)


def main():
    out, coordinator, processes, process, *meshes = sys.argv[1:]
    if int(processes) > 1:
        connect(Peers(coordinator, int(processes), int(process)))
    jax.config.update("jax_default_matmul_precision", "highest")
    one = make_mesh({"data": 1}, jax.local_devices()[:1])
    want, loss, tokens = step(one, True, 0) if processes == "1" else load(out)
    if processes == "1":
        save(out, want, loss, tokens)
    report = {}
    for name in meshes:
        mesh = make_mesh(dict(zip(AXES, map(int, name.split("x")), strict=True)))
        got, value, sampled = step(mesh, name in SAMPLED, 0 if name in PADDED else 16)
        report[name] = {
            "gradient": difference(got, want), "loss": abs(value - loss), "same_tokens": sampled in (None, tokens),
            "places": gather([int(p) for p in share_of(mesh).places(ROWS)]),
        }  # fmt: skip
    if jax.process_index() == 0:
        Path(f"{out}.{processes}.json").write_text(json.dumps(report))


def save(out, tree, loss, tokens):
    leaves = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    np.savez(f"{out}.npz", **leaves)
    Path(f"{out}.json").write_text(json.dumps([loss, tokens]))


def load(out):
    """What one device gave."""
    _, shapes = vision_language.abstract(CONFIG)
    kept = np.load(f"{out}.npz")
    tree = jax.tree_util.tree_map_with_path(lambda path, _: kept[path_name(path)], shapes)
    return tree, *json.loads(Path(f"{out}.json").read_text())


main()
