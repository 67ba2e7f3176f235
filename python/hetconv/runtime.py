"""Inference with the project's own runtime."""

from __future__ import annotations

import array
import math
import os
from collections.abc import Mapping
from typing import Any

from . import _native

__all__ = ["Runtime"]


class Runtime:
    """A network compiled for inference: batch-norms folded, residual adds and activations fused, HetConv in one pass.

    `path` is a model file (`.safetensors`) or an ONNX file (`.onnx`). `batch` says for how many images at a time the
    layers' algorithms are chosen; any other number can be run. With `exact`, Winograd's algorithm is left out, whose
    results differ by rounding. `threads` defaults to one for each core. `image_size` is `(height, width)` of the images,
    needed where an ONNX file leaves them open.

    A runtime may be used by several threads at a time; computing releases the interpreter's lock.

    Raises `OSError` for a file that cannot be read, and `hetconv.Error` for one that holds no network that can be run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch: int = 1,
        exact: bool = False,
        threads: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        if batch < 1 or (threads is not None and threads < 1):
            raise ValueError(f"batch = {batch} and threads = {threads} have to be at least 1")
        self._native = _native.Runtime(os.fspath(path), batch, exact, threads, image_size)

    @property
    def name(self) -> str:
        """What the network calls itself."""
        return self._native.name

    @property
    def input_names(self) -> list[str]:
        """The name of every input."""
        return self._native.input_names

    @property
    def input_shapes(self) -> list[tuple[int, int, int]]:
        """`(channels, height, width)` of every input."""
        return [tuple(shape) for shape in self._native.input_shapes]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """`(features,)` or `(channels, height, width)` of every output."""
        return [tuple(shape) for shape in self._native.output_shapes]

    @property
    def output_names(self) -> list[str]:
        """The name of every output: that of the node whose value it is."""
        return self._native.output_names

    @property
    def class_names(self) -> list[str]:
        """A name for every output feature, or none at all."""
        return self._native.class_names

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of every channel, for pixels from 0 to 1; `None` if the file does not state them.
        `run` does not apply them."""
        return self._native.normalisation

    def run(self, images: Any) -> Any:
        """The network's result for arrays of `(images, channels, height, width)`.

        `images` is an array, or for several inputs a mapping from their names. A NumPy array, a PyTorch tensor or whatever
        else NumPy reads is brought to contiguous `float32`; without NumPy, it has to have a buffer of that kind. The result
        is a NumPy array (without NumPy, a `memoryview`), or a list of them if the network has several outputs.
        """
        names, shapes = self.input_names, self.input_shapes
        if not isinstance(images, Mapping):
            if len(names) != 1:
                raise ValueError(f"the network has the inputs {names}: a mapping from their names is needed")
            images = {names[0]: images}
        if set(images) != set(names):
            raise ValueError(f"arrays for {sorted(images)}, but the inputs are {names}")
        arrays = [_contiguous(images[name]) for name in names]
        batch = arrays[0].shape[0] if arrays[0].ndim else 0
        for name, given, shape in zip(names, arrays, shapes):
            if batch == 0 or tuple(given.shape) != (batch, *shape):
                raise ValueError(
                    f"input `{name}` has the shape {tuple(given.shape)}; it takes (images, {', '.join(map(str, shape))})"
                )
        results = [_empty((batch, *shape)) for shape in self.output_shapes]
        self._native.run(batch, arrays, results)
        return results[0] if len(results) == 1 else results


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _contiguous(values: Any) -> Any:
    numpy = _numpy()
    if numpy is not None:
        if hasattr(values, "detach"):  # a tensor, perhaps one that autograd follows
            values = values.detach().cpu().float().numpy()
        return numpy.ascontiguousarray(values, dtype=numpy.float32)
    view = memoryview(values)
    if view.format != "f" or not view.c_contiguous:
        raise TypeError("without NumPy, an array has to be contiguous float32")
    return view


def _empty(shape: tuple[int, ...]) -> Any:
    numpy = _numpy()
    if numpy is not None:
        return numpy.empty(shape, dtype=numpy.float32)
    values = array.array("f", bytes(4 * math.prod(shape)))
    return memoryview(values).cast("B").cast("f", shape)
