"""Anybody's model with HetConv in place of its convolutions."""

from __future__ import annotations

import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .layer import HetConv2d
from .network import UnevenlyPaddedConv2d
from .replace import replace_modules

__all__ = ["ConvertReport", "ConvertedLayer", "convert"]

Names = str | Iterable[str] | Callable[[str], bool]

_CONVOLUTIONS = (nn.Conv2d, HetConv2d)


@dataclass(frozen=True)
class ConvertedLayer:
    """What became of one convolution."""

    name: str
    """Of the module, as `named_modules` has it."""
    shape: str
    """Channels, filters, kernel and stride."""
    parts: int | None
    """The paper's P; `None` for a convolution that stays."""
    note: str
    """Why it stays, or what was done otherwise than asked."""
    weights: tuple[int, int]
    """Before and after, biases left out."""
    macs: tuple[int, int] | None
    """For one image, before and after, if an example was given."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did; `print` it."""

    layers: list[ConvertedLayer]
    """All convolutions, in the model's order."""

    @property
    def converted(self) -> list[ConvertedLayer]:
        """Those that are HetConv now."""
        return [layer for layer in self.layers if layer.parts is not None]

    @property
    def kept(self) -> list[ConvertedLayer]:
        """The others."""
        return [layer for layer in self.layers if layer.parts is None]

    @property
    def weights(self) -> tuple[int, int]:
        """Of all convolutions, before and after."""
        before, after = zip(*(layer.weights for layer in self.layers))
        return sum(before), sum(after)

    @property
    def macs(self) -> tuple[int, int] | None:
        """Of all convolutions for one image, before and after, if an example was given."""
        counted = [layer.macs for layer in self.layers]
        if not counted or None in counted:
            return None
        before, after = zip(*counted)
        return sum(before), sum(after)

    def __str__(self) -> str:
        rows = [("convolution", "shape", "P", "weights", "MACs per image", "")]
        for layer in self.layers:
            rows.append((layer.name, layer.shape, str(layer.parts or "–"), *self._costs(layer), layer.note))
        rows.append(("all", "", "", *self._costs(self), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)

    @staticmethod
    def _costs(of: ConvertedLayer | ConvertReport) -> tuple[str, str]:
        def change(cost: tuple[int, int] | None) -> str:
            return "–" if cost is None else f"{cost[0]:,} → {cost[1]:,}" if cost[0] != cost[1] else f"{cost[0]:,}"

        return change(of.weights), change(of.macs)


def convert(
    model: nn.Module,
    parts: int = 4,
    exclude: Names = (),
    init: Literal["project", "random"] = "project",
    *,
    arrangement: str = "shifted",
    parts_by_name: Mapping[str, int] | None = None,
    keep_first: bool = True,
    example: Tensor | None = None,
) -> ConvertReport:
    """Puts `HetConv2d` in the place of a model's convolutions, and says what became of each.

    Converted is every `torch.nn.Conv2d` without groups whose kernel is square, odd and larger than 1×1, but for the first in
    the model's order (the paper's rule; `keep_first=False` takes it, too). That may be a `HetConv2d`, which stays as it is.

    A convolution stays, too, whose weight or bias is another module's as well, or no parameter but made by a hook. Hooks on
    results and gradients of one that is converted are the new layer's afterwards.

    * `parts`: the paper's P. Where it does not fit a layer (more than its channels, or blocked and no divisor of channels and
      filters), the largest smaller one is taken, and the report says so. `parts_by_name` gives other values by pattern.
    * `exclude`: names of modules that stay, as patterns (`"layer1.*"`), several of them, or a function of the name.
    * `init`: `"project"` keeps the taps that a layer still has, `"random"` draws fresh ones. Biases stay.
    * `arrangement`: `"shifted"`, the paper's, or `"blocked"`, the authors' published code's, whose classes are contiguous in
      PyTorch's memory.
    * `example`: images to run once, in evaluation and without gradients, to count MACs.

    The model is changed in place; make its optimizer afterwards. A pattern that matches no convolution's name is warned of.

    Raises `ValueError` if nothing was converted, for arguments that mean nothing, and where a convolution has a module of its
    own whose name `HetConv2d` has another use for.
    """
    if parts < 1:
        raise ValueError(f"HetConv needs at least 1 part, got P = {parts}")
    if init not in ("project", "random"):
        raise ValueError(f"init = {init!r}; accepted are 'project' and 'random'")
    if arrangement not in ("shifted", "blocked"):
        raise ValueError(f"arrangement = {arrangement!r}; accepted are 'shifted' and 'blocked'")
    if isinstance(model, _CONVOLUTIONS):
        raise ValueError(
            "the model is itself a convolution, which nothing can take the place of: convert what contains it"
        )
    pixels = None if example is None else _output_pixels(model, example)
    uses = Counter(id(own) for module in model.modules() for own in module._parameters.values() if own is not None)
    excluded, own = _matcher(exclude), list((parts_by_name or {}).items())
    for pattern, value in own:
        if value < 1:
            raise ValueError(f"parts_by_name: HetConv needs at least 1 part, got P = {value} for {pattern!r}")
    layers: list[ConvertedLayer] = []

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, _CONVOLUTIONS):
            return None
        first = keep_first and not layers
        asked = next((value for pattern, value in own if fnmatch.fnmatchcase(name, pattern)), parts)
        reason = "the first convolution" if first else "excluded" if excluded(name) else _unfit(module, uses)
        used = None if reason else _fitting(asked, module, arrangement)
        if used == 1:
            reason, used = f"P = {asked} does not fit", None
        het = None if used is None else _het(module, used, arrangement, init)
        weights = (_weights(module), _weights(module if het is None else het))
        note = reason or ("" if used == asked else f"P = {asked} does not fit")
        macs = None
        if pixels is not None:
            count = pixels.get(module, 0)
            macs = (count * weights[0], count * weights[1])
            note += "" if count else f"{', ' if note else ''}not used for the example"
        layers.append(ConvertedLayer(name, _shape(module), used, note, weights, macs))
        return het

    replace_modules(model, replacement)
    report = ConvertReport(layers)
    patterns = [] if callable(exclude) else [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in [*patterns, *(parts_by_name or {})]:
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
            warnings.warn(f"{pattern!r} matches no convolution's name", stacklevel=2)
    if not report.converted:
        reasons = "".join(f"\n  {layer.name}: {layer.note}" for layer in layers)
        raise ValueError(f"nothing was converted:{reasons or ' the model has no convolutions'}")
    return report


def _matcher(names: Names) -> Callable[[str], bool]:
    if callable(names):
        return names
    patterns = [names] if isinstance(names, str) else list(names)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _weights(module: nn.Conv2d | HetConv2d) -> int:
    return module._native.weights if isinstance(module, HetConv2d) else module.weight.numel()


def _unfit(module: nn.Conv2d | HetConv2d, uses: Counter[int]) -> str:
    """Why a convolution does not become HetConv; empty if it can. `uses` counts the modules that have a parameter."""
    height, width = module.kernel_size
    if isinstance(module, HetConv2d):
        return "HetConv already"
    if type(module) not in (nn.Conv2d, UnevenlyPaddedConv2d):
        return f"a {type(module).__name__}"
    if not module._parameters.keys() >= {"weight", "bias"}:
        return "its weights are made by a hook, such as weight_norm's or prune's"
    if any(own is not None and uses[id(own)] > 1 for own in module._parameters.values()):
        return "shares its weights with another"
    if module.groups != 1:
        return f"has {module.groups} groups"
    if (height, width) == (1, 1):
        return "pointwise"
    if height != width or height % 2 == 0:
        return f"a {height}×{width} kernel"
    return ""


def _fitting(asked: int, module: nn.Conv2d, arrangement: str) -> int:
    """The largest P up to the one that is asked for that a layer can have."""
    channels, filters = module.in_channels, module.out_channels
    largest = min(asked, channels)
    if arrangement == "shifted":
        return largest
    return next(parts for parts in range(largest, 0, -1) if channels % parts == filters % parts == 0)


def _het(module: nn.Conv2d, parts: int, arrangement: str, init: str) -> HetConv2d:
    place = {"device": module.weight.device, "dtype": module.weight.dtype}
    layer = HetConv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
        **place,
        parts=parts,
        arrangement=arrangement,
    )
    if isinstance(module, UnevenlyPaddedConv2d):
        left, right, top, bottom = module.margins
        layer.operator["geometry"]["padding"] = [top, left, bottom, right]
        layer = HetConv2d.from_operator(layer.operator, **place)
    if init == "project" and not module.weight.is_meta:
        layer.set_dense_weight(module.weight, project=True)
    if module.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(module.bias)
    for name, parameter in layer.named_parameters():
        given = module.bias if name == "bias" else module.weight
        parameter.requires_grad_(given.requires_grad)
    return layer.train(module.training)


def _shape(module: nn.Conv2d | HetConv2d) -> str:
    height, width = module.kernel_size
    stride = "" if module.stride == (1, 1) else f" s{module.stride[0]}"
    return f"{module.in_channels}→{module.out_channels} {height}×{width}{stride}"


def _output_pixels(model: nn.Module, example: Tensor) -> dict[nn.Module, int]:
    """Pixels of the result of every convolution for one image; of one that is used several times, of all uses."""
    pixels: dict[nn.Module, int] = {}

    def count(module, _, output):
        pixels[module] = pixels.get(module, 0) + output.shape[-2] * output.shape[-1]

    training = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(count) for module in training if isinstance(module, _CONVOLUTIONS)]
    try:
        # Some may be in evaluation already, as frozen batch-norms are; what `train` and `eval` do besides is not wanted.
        for module in training:
            module.training = False
        with torch.no_grad():
            model(example)
    finally:
        for module, before in training.items():
            module.training = before
        for hook in hooks:
            hook.remove()
    return pixels
