"""What a tree of parameters holds, on any mesh: whether its numbers are finite, and a fingerprint of their bits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvr1.errors import UserError
from jvr1.model.parameters import STACKS
from jvr1.sharding import path_name

SMALL = 2**26
"""Bytes up to which arrays of this process' own memory are looked at where they are: compiling would take longer."""


def not_finite(tree: Any) -> str | None:
    """Path of the first array, by name, that holds a NaN or an infinity, with its first such layer; None: there is
    none. All processes call it."""
    floats = {name: x for name, x in _named(tree).items() if jnp.issubdtype(x.dtype, jnp.inexact) and x.size}
    finite = _each(_finite, floats)
    name = next((name for name in sorted(floats) if not finite[name]), None)
    if name is None or not any(stack in name for stack in STACKS):
        return name
    layers = _each(_finite_layers, {name: floats[name]})[name]
    return f"{name}, layer {int(np.argmin(layers))}"


def check_finite(tree: Any, what: str, then: str) -> None:
    """Raises UserError 'WHAT: PATH is not finite; THEN'. All processes call it."""
    found = not_finite(tree)
    if found is not None:
        raise UserError(f"{what}: {found} is not finite (NaN or infinite); {then}")


def fingerprint(params: dict) -> str:
    """16 hexadecimal digits that follow from paths, shapes, dtypes and bits of parameters, and from nothing else: not
    from the mesh, nor from the form they were read from. All processes call it."""
    own = _named(params)
    sums = _each(_bit_sum, own)
    lines = [[name, str(own[name].dtype), list(own[name].shape), int(sums[name])] for name in sorted(own)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]


def _named(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _each(function: Callable[[Any, Any], Any], arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """function(numpy or jax.numpy, array) of each array: by numpy, or compiled where the arrays are."""
    here = all(x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"} for x in arrays.values())
    if here and sum(x.nbytes for x in arrays.values()) <= SMALL:
        return {name: np.asarray(function(np, np.asarray(x))) for name, x in arrays.items()}
    results = _run(function, arrays)
    return {name: np.asarray(x.addressable_data(0)) for name, x in results.items()}


@partial(jax.jit, static_argnums=0)
def _run(function: Callable[[Any, Any], Any], arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: function(jnp, x) for name, x in arrays.items()}


def _finite(xp: Any, x: Any) -> Any:
    return xp.isfinite(x).all()


def _finite_layers(xp: Any, x: Any) -> Any:
    return xp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _bit_sum(xp: Any, x: Any) -> Any:
    """The sum, modulo 2^32, of a hash of each number's bits and place: no order of adding up changes it."""
    bits = x.view({1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]).astype(xp.uint32)
    place = xp.zeros((1,) * x.ndim, xp.uint32)
    for axis, size in enumerate(x.shape):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        along = xp.arange(size, dtype=xp.uint32) * stride
        place = place + along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return _mix(_mix(place) ^ bits).sum(dtype=xp.uint32)


def _mix(x: Any) -> Any:
    """The finaliser of MurmurHash3 (Appleby, public domain): every bit of the result depends on every bit given."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x
