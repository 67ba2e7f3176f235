"""The kernels as operators of PyTorch: `torch.ops.hetconv.{conv2d, conv2d_grad_input, conv2d_grad_weight}`.

All three take and give `float32` on the CPU. Images are `[batch, channels, height, width]`; stored channels-last they are
read as they are, otherwise they are brought into that format, and so is what the operators return. A layer is described by
the JSON of a `conv2d` operator in a model file. Each operator is linear in each of its tensors, so the gradients of all three
are the three themselves.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections import Counter

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _native

__all__ = ["native", "output_size"]

_FORMAT = torch.channels_last


@functools.lru_cache(maxsize=1024)
def native(layer: str) -> _native.Layer:
    """The kernels of a layer."""
    return _native.Layer(layer)


@functools.lru_cache(maxsize=1024)
def _description(layer: str) -> dict:
    return json.loads(layer)


def output_size(layer: str, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the result for images of this size."""
    geometry = _description(layer)["geometry"]
    sides = []
    for axis in range(2):
        padding = geometry["padding"][axis] + geometry["padding"][axis + 2]
        window = geometry["dilation"][axis] * (geometry["kernel"][axis] - 1) + 1
        sides.append((size[axis] + padding - window) // geometry["stride"][axis] + 1)
    return sides[0], sides[1]


def _is_channels_last(images: Tensor) -> bool:
    """Whether a result had better be channels-last, as PyTorch's own convolution decides."""
    return images.is_contiguous(memory_format=_FORMAT) and not images.is_contiguous()


def _like(images: Tensor, *shape: int) -> Tensor:
    """An empty tensor stored as the kernels write it."""
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=_FORMAT)


def _in_format_of(images: Tensor, result: Tensor) -> Tensor:
    return result if _is_channels_last(images) else result.contiguous()


def _check(
    layer: str, images: dict[str, tuple[Tensor, int]], weights: dict[str, tuple[Tensor, tuple[int, ...]]]
) -> None:
    """What the kernels rely on."""
    for name, (tensor, channels) in images.items():
        if tensor.dim() != 4 or tensor.shape[1] != channels:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}; it takes (images, {channels}, height, width)"
            )
    for name, (tensor, shape) in weights.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; the layer's is {shape}")
    for name, (tensor, _) in [*images.items(), *weights.items()]:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}; the kernels compute float32 on the CPU")


def _weights(layer: str, center: Tensor, ring: Tensor) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    center_shape, ring_shape = _weight_shapes(layer)
    return {"center": (center, center_shape), "ring": (ring, ring_shape)}


@functools.lru_cache(maxsize=1024)
def _weight_shapes(layer: str) -> tuple[tuple[int, int], tuple[int, int, int]]:
    op = _description(layer)
    kernel = op["geometry"]["kernel"]
    filters = op["out_channels"]
    return (filters, op["in_channels"]), (filters, native(layer).max_spatial, kernel[0] * kernel[1] - 1)


def _images(layer: str, batch: int, size: tuple[int, int], name: str) -> tuple[int, tuple[int, int]]:
    if min(output_size(layer, size)) < 1:
        raise ValueError(f"{name} of {size[0]}×{size[1]} pixels is smaller than the layer's window")
    return batch, size


@torch.library.custom_op("hetconv::conv2d", mutates_args=())
def conv2d(input: Tensor, center: Tensor, ring: Tensor, bias: Tensor | None, layer: str, exact: bool) -> Tensor:
    """The layer's result `[batch, N, out height, out width]` for an input `[batch, M, height, width]`."""
    op = _description(layer)
    weights = _weights(layer, center, ring)
    if bias is not None:
        weights["bias"] = (bias, (op["out_channels"],))
    _check(layer, {"input": (input, op["in_channels"])}, weights)
    batch, _, height, width = input.shape
    images = _images(layer, batch, (height, width), "an input")
    output = _like(input, batch, op["out_channels"], *output_size(layer, (height, width)))
    if batch > 0:
        stored, center, ring = input.contiguous(memory_format=_FORMAT), center.contiguous(), ring.contiguous()
        bias = None if bias is None else bias.contiguous()
        addresses = [stored.data_ptr(), center.data_ptr(), ring.data_ptr(), 0 if bias is None else bias.data_ptr()]
        native(layer).forward(images, addresses, output.data_ptr(), exact, torch.get_num_threads())
    return _in_format_of(input, output)


@torch.library.custom_op("hetconv::conv2d_grad_input", mutates_args=())
def conv2d_grad_input(
    grad_output: Tensor, center: Tensor, ring: Tensor, height: int, width: int, layer: str, exact: bool
) -> Tensor:
    """The gradient by an input of `height` × `width` pixels."""
    op = _description(layer)
    _check(layer, {"grad_output": (grad_output, op["out_channels"])}, _weights(layer, center, ring))
    batch = grad_output.shape[0]
    images = _images(layer, batch, (height, width), "an input")
    _check_output(layer, grad_output, (height, width))
    grad_input = _like(grad_output, batch, op["in_channels"], height, width)
    if batch > 0:
        stored, center, ring = grad_output.contiguous(memory_format=_FORMAT), center.contiguous(), ring.contiguous()
        addresses = [stored.data_ptr(), center.data_ptr(), ring.data_ptr()]
        native(layer).grad_input(images, addresses, grad_input.data_ptr(), exact, torch.get_num_threads())
    return _in_format_of(grad_output, grad_input)


@torch.library.custom_op("hetconv::conv2d_grad_weight", mutates_args=())
def conv2d_grad_weight(input: Tensor, grad_output: Tensor, layer: str, exact: bool) -> tuple[Tensor, Tensor]:
    """The gradients by the weights `center` and `ring`."""
    op = _description(layer)
    _check(layer, {"input": (input, op["in_channels"]), "grad_output": (grad_output, op["out_channels"])}, {})
    batch, _, height, width = input.shape
    images = _images(layer, batch, (height, width), "an input")
    _check_output(layer, grad_output, (height, width))
    if grad_output.shape[0] != batch:
        raise ValueError(f"{batch} inputs and {grad_output.shape[0]} gradients")
    center, ring = (input.new_empty(shape) for shape in _weight_shapes(layer))
    if batch > 0:
        stored = [tensor.contiguous(memory_format=_FORMAT) for tensor in (input, grad_output)]
        addresses = [tensor.data_ptr() for tensor in stored]
        targets = [center.data_ptr(), ring.data_ptr()]
        native(layer).grad_weight(images, addresses, targets, exact, torch.get_num_threads())
        return center, ring
    return center.zero_(), ring.zero_()


def _check_output(layer: str, grad_output: Tensor, size: tuple[int, int]) -> None:
    expected = output_size(layer, size)
    if tuple(grad_output.shape[2:]) != expected:
        found = tuple(grad_output.shape[2:])
        raise ValueError(f"a gradient of {found} pixels for a result of {expected}")


@conv2d.register_fake
def _(input, center, ring, bias, layer, exact):
    filters, (height, width) = center.shape[0], output_size(layer, (input.shape[2], input.shape[3]))
    return _in_format_of(input, _like(input, input.shape[0], filters, height, width))


@conv2d_grad_input.register_fake
def _(grad_output, center, ring, height, width, layer, exact):
    return _in_format_of(grad_output, _like(grad_output, grad_output.shape[0], center.shape[1], height, width))


@conv2d_grad_weight.register_fake
def _(input, grad_output, layer, exact):
    center, ring = _weight_shapes(layer)
    return input.new_empty(center), input.new_empty(ring)


def _conv2d_context(ctx, inputs, output):
    input, center, ring, bias, ctx.layer, ctx.exact = inputs
    ctx.save_for_backward(input, center, ring)


def _conv2d_backward(ctx, grad):
    input, center, ring = ctx.saved_tensors
    needs_input, needs_center, needs_ring, needs_bias, *_ = ctx.needs_input_grad
    grad_input = grad_center = grad_ring = grad_bias = None
    if needs_center or needs_ring:
        grad_center, grad_ring = conv2d_grad_weight(input, grad, ctx.layer, ctx.exact)
    if needs_input:
        grad_input = conv2d_grad_input(grad, center, ring, input.shape[2], input.shape[3], ctx.layer, ctx.exact)
    if needs_bias:
        grad_bias = grad.sum((0, 2, 3))
    return grad_input, grad_center, grad_ring, grad_bias, None, None


def _grad_input_context(ctx, inputs, output):
    grad_output, center, ring, _, _, ctx.layer, ctx.exact = inputs
    ctx.save_for_backward(grad_output, center, ring)


def _grad_input_backward(ctx, grad):
    grad_output, center, ring = ctx.saved_tensors
    needs_output, needs_center, needs_ring, *_ = ctx.needs_input_grad
    by_output = by_center = by_ring = None
    if needs_output:
        by_output = conv2d(grad, center, ring, None, ctx.layer, ctx.exact)
    if needs_center or needs_ring:
        by_center, by_ring = conv2d_grad_weight(grad, grad_output, ctx.layer, ctx.exact)
    return by_output, by_center, by_ring, None, None, None, None


def _grad_weight_context(ctx, inputs, output):
    input, grad_output, ctx.layer, ctx.exact = inputs
    ctx.save_for_backward(input, grad_output)


def _grad_weight_backward(ctx, grad_center, grad_ring):
    input, grad_output = ctx.saved_tensors
    by_input = by_output = None
    if ctx.needs_input_grad[0]:
        size = input.shape[2], input.shape[3]
        by_input = conv2d_grad_input(grad_output, grad_center, grad_ring, *size, ctx.layer, ctx.exact)
    if ctx.needs_input_grad[1]:
        by_output = conv2d(input, grad_center, grad_ring, None, ctx.layer, ctx.exact)
    return by_input, by_output, None, None


conv2d.register_autograd(_conv2d_backward, setup_context=_conv2d_context)
conv2d_grad_input.register_autograd(_grad_input_backward, setup_context=_grad_input_context)
conv2d_grad_weight.register_autograd(_grad_weight_backward, setup_context=_grad_weight_context)


def _flops(layer: str, images: torch.Size) -> int:
    """Two for each product of a layer's own taps, for output images of this shape: what PyTorch counts of a convolution."""
    center, ring = _weight_shapes(layer)
    of_layer = native(layer)
    sizes = Counter(of_layer.channel_classes)
    spatial = sum(sizes[filter] for filter in of_layer.filter_classes)
    return 2 * images[0] * images[2] * images[3] * (center[0] * center[1] + spatial * ring[2])


@register_flop_formula(torch.ops.hetconv.conv2d)
def _(input, center, ring, bias, layer, exact, out_shape=None, **_kwargs):
    return _flops(layer, out_shape)


@register_flop_formula(torch.ops.hetconv.conv2d_grad_input)
def _(grad_output, center, ring, height, width, layer, exact, out_shape=None, **_kwargs):
    return _flops(layer, grad_output)


@register_flop_formula(torch.ops.hetconv.conv2d_grad_weight)
def _(input, grad_output, layer, exact, out_shape=None, **_kwargs):
    return _flops(layer, grad_output)


def _find_openmp() -> None:
    """Tells the kernels where PyTorch's OpenMP is, so that its threads sleep while theirs compute."""
    try:
        with open("/proc/self/maps") as maps:
            found = re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so\S*", maps.read())
        parallel = ctypes.CDLL(found[0]).GOMP_parallel
    except (OSError, IndexError, AttributeError):
        # Another system, or another OpenMP. All that is lost is some speed.
        return
    _native.use_openmp(ctypes.cast(parallel, ctypes.c_void_p).value)


_find_openmp()
