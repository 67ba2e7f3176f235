"""HetConv in PyTorch's own modules, for whatever reads modules or traces: exporters, quantisers, other engines."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from .layer import HetConv2d
from .network import UnevenlyPaddedConv2d
from .replace import replace_modules

__all__ = ["Decomposed", "decompose"]


class Decomposed(nn.Module):
    """A layer as a grouped convolution `gwc` (centre taps 0) plus a 1×1 convolution `pwc`; for classes of equal sizes.

    Where classes are not contiguous, channels are gathered before `gwc` and filters after the sum.
    """

    def __init__(self, layer: HetConv2d) -> None:
        super().__init__()
        spatial, pointwise, bias = layer.grouped_weights()
        top, left, bottom, right = layer.operator["geometry"]["padding"]
        margins = layer.margins()
        self._pad = None if (top, left) == (bottom, right) else (left, right, top, bottom)
        self._margins = None if margins[0] == margins[1] >= 0 and margins[2] == margins[3] >= 0 else margins
        padding = (top, left) if self._pad is None else 0
        point_padding = (margins[2], margins[0]) if self._margins is None else 0
        groups = layer.in_channels // spatial.shape[1]
        channels, filters, stride = layer.in_channels, layer.out_channels, layer.stride
        self.gwc = nn.Conv2d(
            channels, filters, layer.kernel_size, stride, padding, layer.dilation, groups, False, device="meta"
        )
        self.pwc = nn.Conv2d(channels, filters, 1, stride, point_padding, bias=bias is not None, device="meta")
        _set(self.gwc, spatial, None)
        _set(self.pwc, pointwise, bias)
        self.register_buffer("channel_order", layer._channel_order, persistent=False)
        self.register_buffer("filter_place", layer._filter_place, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's result. No branch looks at the images, so that all kinds of tracing work."""
        result = self.pwc(input if self._margins is None else nn.functional.pad(input, self._margins))
        if self.channel_order is not None:
            input = input.index_select(1, self.channel_order)
        if self._pad is not None:
            input = nn.functional.pad(input, self._pad)
        result = result + self.gwc(input)
        return result if self.filter_place is None else result.index_select(1, self.filter_place)


def decompose(model: nn.Module) -> nn.Module:
    """A copy of a model with PyTorch's own modules in place of every `HetConv2d`: `Decomposed`, or, where classes differ in
    size or the padding is none of zeros, a `Conv2d` with the dense weight."""

    def replacement(_: str, module: nn.Module) -> nn.Module | None:
        return _decomposed(module) if isinstance(module, HetConv2d) else None

    return replace_modules(copy.deepcopy(model), replacement)


def _decomposed(layer: HetConv2d) -> nn.Module:
    if layer._groups is not None and layer._pad is None:
        return Decomposed(layer).train(layer.training)
    top, left, bottom, right = layer.padding
    symmetric = (top, left) == (bottom, right)
    dense = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        (top, left) if symmetric else 0,
        layer.dilation,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    if not symmetric:
        dense.__class__, dense.margins = UnevenlyPaddedConv2d, (left, right, top, bottom)
    _set(dense, layer.dense_weight(), layer.bias)
    return dense.train(layer.training)


def _set(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    convolution.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach().clone())
