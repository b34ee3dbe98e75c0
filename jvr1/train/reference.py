"""The model that KL is measured from: a copy in the compute dtype, on the devices or in host memory; or the base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
from flax import nnx

from jvr1.errors import UserError
from jvr1.model.lora import without_adapters
from jvr1.train.trees import cast


@dataclass(frozen=True)
class Reference:
    """graphdef and params of the model, laid out as the trained one is; with `host` in the memory of the hosts."""

    graphdef: nnx.GraphDef
    params: dict
    host: bool = False

    @contextmanager
    def on_device(self) -> Iterator[dict]:
        """The parameters to score with. From host memory they are copied, and the copy is freed after use."""
        if not self.host:
            yield self.params
            return
        there = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), self.params)
        yield there
        jax.tree.map(lambda x: x.delete(), there)


def open_reference(
    graphdef: nnx.GraphDef, params: dict, dtype: str, *, host: bool = False, adapters: bool = False
) -> Reference:
    """The model as it is now. Under adapters it is the base, these very arrays: nothing changes them. Otherwise a copy.

    Raises UserError when the backend has no host memory to keep it in.
    """
    if adapters:
        return Reference(*without_adapters(graphdef, params))
    params = cast(params, dtype)
    if not host:
        return Reference(graphdef, params)
    device = next(iter(jax.tree.leaves(params)[0].sharding.addressable_devices))
    if "pinned_host" not in {memory.kind for memory in device.addressable_memories()}:
        raise UserError(f"model.reference=host: {device.device_kind} has no host memory for arrays; use device")
    kept = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), params)
    return Reference(graphdef, kept, host)
