"""The HetConv layer."""

from __future__ import annotations

import copy
import json
from operator import index
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops

__all__ = ["HetConv2d"]

Form = Literal["auto", "kernels", "grouped", "dense"]


class HetConv2d(nn.Module):
    """A heterogeneous convolution: filter `f` has a K×K kernel on the channels of its class and a 1×1 kernel, in the middle
    of the window, on every other one (Singh et al., CVPR 2019, figure 3). Every filter thus has M/P spatial kernels of M.

    The arguments are those of `torch.nn.Conv2d`, plus:

    * `parts`: the paper's P, 1 to `in_channels`.
    * `arrangement`: `"shifted"` is the paper's (channel `c` and filter `f` have the classes `c mod P` and `f mod P`),
      `"blocked"` has contiguous classes and needs P to divide both numbers. A pair of lists gives the class of every channel
      and of every filter.
    * `exact`: leave out Winograd's algorithm, whose results differ by rounding (some 1e-6 of their rms).

    `groups` has to be 1 and both sides of `kernel_size` odd.

    Raises `hetconv.Error`, a `ValueError`, for parts or classes that do not fit the channels.

    Shapes: input `[batch, M, height, width]` (or without batch), result `[batch, N, out height, out width]`.

    Weights are stored as in the project's model files, no tap twice and none that is always 0:

    * `center` `[N, M]`: the 1×1 kernels, and the centres of the K×K ones;
    * `ring` `[N, S, K²−1]`: the other taps of each filter's spatial channels, ascending; S is the most that any filter has.
      If P does not divide M, the spare slots of the other filters are 0 and stay so;
    * `bias` `[N]`.

    `load_state_dict` also takes a dense `weight` `[N, M, K, K]` that is 0 where the layer has no taps, and `gwc.weight` with
    `pwc.weight`, the grouped and the pointwise convolution of the authors' code, for blocked layers. `dense_weight()` is the
    way back.

    The kernels run where input and weights are `float32` on the CPU, outside of autocast, of the transforms of `torch.func`
    and of `torch.onnx.export`; everything else is computed by PyTorch: a grouped plus a pointwise convolution if all classes
    have the same sizes, otherwise a convolution with the dense weight. Set `form` to `"kernels"`, `"grouped"` or `"dense"` to
    have one of them in any case.
    """

    form: Form = "auto"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        parts: int = 4,
        arrangement: str | tuple[list[int], list[int]] = "shifted",
        exact: bool = False,
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups = {groups}: a HetConv layer has parts, not groups")
        # Conv2d knows what its arguments mean and which of them contradict each other.
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias, padding_mode, device="meta"
        )
        if isinstance(arrangement, str) and arrangement not in ("shifted", "blocked"):
            raise ValueError(f"arrangement = {arrangement!r}; accepted are 'shifted', 'blocked' and a pair of lists")
        if not isinstance(padding, str) and min(plain.padding) < 0:
            raise ValueError(f"padding = {padding} is negative")
        top, bottom, left, right = 0, 0, 0, 0
        if padding == "same":
            left, right, top, bottom = plain._reversed_padding_repeated_twice
        elif padding != "valid":
            top, left = plain.padding
            bottom, right = top, left
        geometry = {
            "kernel": list(plain.kernel_size),
            "stride": list(plain.stride),
            "padding": [top, left, bottom, right],
            "dilation": list(plain.dilation),
        }
        if isinstance(arrangement, str):
            arranged = {arrangement: {"parts": index(parts)}}
        else:
            channels, filters = (list(map(int, classes)) for classes in arrangement)
            if min(channels + filters, default=0) < 0:
                raise ValueError("classes are numbers from 0 on")
            arranged = {"assigned": {"channels": channels, "filters": filters}}
        operator = _operator(in_channels, out_channels, geometry, arranged, bias)
        self._build(operator, padding_mode, exact, device, dtype)

    @classmethod
    def from_operator(cls, operator: dict[str, Any], *, device: Any = None, dtype: Any = None) -> HetConv2d:
        """The layer that a `conv2d` operator in the graph of a model file describes."""
        layer = cls.__new__(cls)
        layer._build(copy.deepcopy(operator), "zeros", False, device, dtype)
        return layer

    def _build(self, operator: dict[str, Any], padding_mode: str, exact: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        geometry = operator["geometry"]
        top, left, bottom, right = geometry["padding"]
        self._pad = None
        if padding_mode != "zeros":
            # As in Conv2d: the image is padded first, and the layer adds nothing.
            self._pad = [left, right, top, bottom]
            geometry["padding"] = [0, 0, 0, 0]
        self.operator = operator
        self.layer = json.dumps(operator, separators=(",", ":"))
        self.in_channels, self.out_channels = operator["in_channels"], operator["out_channels"]
        self.kernel_size = tuple(geometry["kernel"])
        self.stride, self.dilation = tuple(geometry["stride"]), tuple(geometry["dilation"])
        self.padding, self.padding_mode = (top, left, bottom, right), padding_mode
        self.exact = exact
        factory = {"device": device, "dtype": dtype}
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.center = nn.Parameter(torch.empty(self.out_channels, self.in_channels, **factory))
        self.ring = nn.Parameter(torch.empty(self.out_channels, self._native.max_spatial, taps - 1, **factory))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_channels, **factory)) if operator["bias"] else None
        )
        self._register_classes(torch.empty(0, device=device).device)
        self.reset_parameters()

    @property
    def _native(self) -> Any:
        return ops.native(self.layer)

    @property
    def parts(self) -> int:
        """The number of classes: the paper's P."""
        return max(*self._native.channel_classes, *self._native.filter_classes) + 1

    @property
    def arrangement(self) -> str:
        """`shifted`, `blocked` or `assigned`."""
        (kind,) = self.operator["kind"]["het"]["arrangement"]
        return kind

    def _classes(self) -> list[Tensor]:
        """The classes of the channels and of the filters, on the CPU whatever the default device is."""
        native = self._native
        return [torch.tensor(classes, device="cpu") for classes in (native.channel_classes, native.filter_classes)]

    def _register_classes(self, device: torch.device) -> None:
        """What the forms of PyTorch need to know of the pattern."""
        channel, filter = self._classes()
        spatial, slot = _slots(channel, filter)
        count = max(int(channel.max()), int(filter.max())) + 1
        sizes = [classes.bincount(minlength=count) for classes in (channel, filter)]
        self._groups = count if all(bool((of == of[0]).all()) for of in sizes) else None
        buffers = {"_spatial": spatial, "_slot": slot}
        for name, classes in (("_channel_order", channel), ("_filter_order", filter)):
            order = classes.argsort(stable=True)
            natural = bool((order == torch.arange(len(order), device="cpu")).all())
            buffers[name] = None if natural else order
        order = buffers["_filter_order"]
        buffers["_filter_place"] = None if order is None else order.argsort()
        for name, values in buffers.items():
            values = None if values is None else values.to(device)
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        if any(buffer is not before[name] for name, buffer in self._buffers.items()):
            # Made again rather than moved: a layer that is built without memory (`meta`) has nothing to move.
            self._register_classes(self.center.device)
        return self

    def fan_in(self) -> Tensor:
        """M + (K²−1)·S_f for every filter `f`, S_f being the number of its spatial channels: the products of one output."""
        return self.in_channels + self.ring.shape[2] * self._spatial.sum(1)

    def reset_parameters(self) -> None:
        """Weights and bias uniform in ±1/√fan-in, one fan-in for both tensors of a filter: `Conv2d`'s rule."""
        with torch.no_grad():
            bound = self.fan_in().to(self.center.dtype).rsqrt()
            self.center.uniform_(-1, 1).mul_(bound[:, None])
            self.ring.uniform_(-1, 1).mul_(bound[:, None, None]).masked_fill_(self.spare_slots()[:, :, None], 0)
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(bound)

    def spare_slots(self) -> Tensor:
        """`[N, S]`: whether a slot of `ring` belongs to no channel."""
        return torch.arange(self.ring.shape[1], device=self._spatial.device) >= self._spatial.sum(1)[:, None]

    def forward(self, input: Tensor) -> Tensor:
        """The layer's result."""
        if self._pad is not None:
            input = F.pad(input, self._pad, mode=self.padding_mode)
        if input.dim() == 3:
            return self._compute(input[None])[0]
        return self._compute(input)

    def _compute(self, input: Tensor) -> Tensor:
        form = self.form
        if form == "auto":
            cpu = input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            if cpu and input.dtype == self.center.dtype == torch.float32 and not _is_transformed():
                form = "kernels"
            else:
                form = "dense" if self._groups is None else "grouped"
        if form == "kernels":
            return ops.conv2d(input, self.center, self.ring, self.bias, self.layer, self.exact)
        return self._grouped(input) if form == "grouped" else self._dense(input)

    def _dense(self, input: Tensor) -> Tensor:
        top, left, bottom, right = self.operator["geometry"]["padding"]
        if (top, left) != (bottom, right):
            input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
        return F.conv2d(input, self.dense_weight(), self.bias, self.stride, (top, left), self.dilation)

    def _grouped(self, input: Tensor) -> Tensor:
        spatial, pointwise, bias = self.grouped_weights()
        top, left, bottom, right = self.operator["geometry"]["padding"]
        result = F.conv2d(self._cut(input), pointwise, bias, self.stride)
        if self._channel_order is not None:
            input = select_channels(input, self._channel_order)
        if (top, left) != (bottom, right):
            input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
        result = result + F.conv2d(input, spatial, None, self.stride, (top, left), self.dilation, self._groups)
        return result if self._filter_place is None else select_channels(result, self._filter_place)

    def margins(self) -> list[int]:
        """How far outside the image the centres of the outermost windows lie, `[left, right, top, bottom]`; inside, if
        negative."""
        reach = [dilation * (kernel // 2) for dilation, kernel in zip(self.dilation, self.kernel_size)]
        top, left, bottom, right = self.operator["geometry"]["padding"]
        return [left - reach[1], right - reach[1], top - reach[0], bottom - reach[0]]

    def _cut(self, input: Tensor) -> Tensor:
        """The pixels that lie in the middle of a window, and those that stride leaves out."""
        margins = self.margins()
        return F.pad(input, margins) if any(margins) else input

    def dense_weight(self) -> Tensor:
        """The weight `[N, M, kh, kw]` of the standard convolution that computes the same; differentiable."""
        slots = self._slot[:, :, None].expand(-1, -1, self.ring.shape[2])
        taps = self.ring.gather(1, slots) * self._spatial[:, :, None]
        middle = self.ring.shape[2] // 2
        return torch.cat([taps[:, :, :middle], self.center[:, :, None], taps[:, :, middle:]], 2).unflatten(
            2, self.kernel_size
        )

    def grouped_weights(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weights of a grouped convolution (centre taps 0) over channels sorted by class and of a 1×1 convolution over
        channels as they are, and the bias, all for filters sorted by class; for classes of equal sizes.

        Raises `ValueError` for others.
        """
        if self._groups is None:
            raise ValueError("the classes differ in size: a grouped convolution cannot compute this layer")
        center, ring, bias = self.center, self.ring, self.bias
        if self._filter_order is not None:
            center, ring = center.index_select(0, self._filter_order), ring.index_select(0, self._filter_order)
            bias = None if bias is None else bias.index_select(0, self._filter_order)
        middle = ring.shape[2] // 2
        taps = [ring[:, :, :middle], torch.zeros_like(ring[:, :, :1]), ring[:, :, middle:]]
        return torch.cat(taps, 2).unflatten(2, self.kernel_size), center[:, :, None, None], bias

    def set_dense_weight(self, weight: Tensor, *, project: bool = False) -> None:
        """Takes the taps of a dense weight `[N, M, kh, kw]`.

        With `project`, those that the layer has not are dropped; otherwise they have to be 0, or it is a `ValueError`.
        """
        with torch.no_grad():
            center, ring = self._taps(weight.to(self.center.device), project)
            self.center.copy_(center)
            self.ring.copy_(ring)

    def _taps(self, weight: Tensor, project: bool) -> tuple[Tensor, Tensor]:
        """`center` and `ring` of a dense weight, where that is and of its type."""
        _check_shape("dense weight", weight, (self.out_channels, self.in_channels, *self.kernel_size))
        # The layer's own buffers may be without memory (`meta`).
        spatial, slot = (of.to(weight.device) for of in _slots(*self._classes()))
        taps = weight.flatten(2)
        middle = taps.shape[2] // 2
        around = torch.cat([taps[:, :, :middle], taps[:, :, middle + 1 :]], 2)
        if not project and bool(around[~spatial].any()):
            raise ValueError("the weight has taps where the layer has none; `convert` with init='project' drops them")
        ring = around.new_zeros(self.ring.shape)
        filter, channel = spatial.nonzero(as_tuple=True)
        ring[filter, slot[filter, channel]] = around[filter, channel]
        return taps[:, :, middle].clone(memory_format=torch.contiguous_format), ring

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        foreign = {f"{prefix}{name}" for name in ("weight", "gwc.weight", "pwc.weight")} & set(state_dict)
        if foreign and f"{prefix}center" not in state_dict:
            try:
                state_dict = self._canonical(dict(state_dict), prefix, foreign)
            except ValueError as error:
                errors.append(f"{prefix.rstrip('.') or 'the layer'}: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if self._spatial.device != self.center.device:  # with `assign=True`
            self._register_classes(self.center.device)

    @torch.no_grad()
    def _canonical(self, state_dict, prefix, foreign):
        """A state dict with `center` and `ring` in place of a dense weight, or of the authors' two convolutions."""
        if f"{prefix}weight" in foreign:
            weight, bias = state_dict.pop(f"{prefix}weight"), state_dict.get(f"{prefix}bias")
        else:
            weight, bias = self._joined(state_dict, prefix)
        state_dict[f"{prefix}center"], state_dict[f"{prefix}ring"] = self._taps(weight, project=False)
        if bias is not None:
            state_dict[f"{prefix}bias"] = bias
        return state_dict

    def _joined(self, state_dict, prefix):
        """The authors' grouped and pointwise convolution as one dense weight."""
        grouped, pointwise = (state_dict.pop(f"{prefix}{name}.weight", None) for name in ("gwc", "pwc"))
        if grouped is None or pointwise is None:
            raise ValueError("gwc.weight and pwc.weight belong together, and one is missing")
        filters, channels, groups = self.out_channels, self.in_channels, self.parts
        # More groups than classes have fewer taps, and fewer groups may have zeros.
        width = grouped.shape[1] if grouped.dim() == 4 else 0
        if width and channels % width == 0 and filters % (channels // width) == 0:
            groups = channels // width
        if self.arrangement != "blocked" and groups > 1:
            raise ValueError(
                "the authors' grouped convolutions have contiguous classes: arrangement='blocked' is needed"
            )
        _check_shape("gwc.weight", grouped, (filters, channels // groups, *self.kernel_size))
        _check_shape("pwc.weight", pointwise, (filters, channels, 1, 1))
        weight = grouped.new_zeros(filters, channels, *self.kernel_size)
        blocks = weight.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
        for group, taps in enumerate(grouped.chunk(groups)):
            blocks[group, :, group] = taps
        weight[:, :, self.kernel_size[0] // 2, self.kernel_size[1] // 2] += pointwise[:, :, 0, 0]
        biases = {f"{name}.bias": state_dict.pop(f"{prefix}{name}.bias", None) for name in ("gwc", "pwc")}
        biases = {name: bias for name, bias in biases.items() if bias is not None}
        for name, bias in biases.items():
            _check_shape(name, bias, (filters,))
        return weight, sum(biases.values()) if biases else None

    def extra_repr(self) -> str:
        """What `print` shows."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding[:2]}, parts={self.parts}, arrangement={self.arrangement}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        return text if self.bias is not None else text + ", bias=False"


def _slots(channel: Tensor, filter: Tensor) -> tuple[Tensor, Tensor]:
    """Of the classes of channels and filters, `[N, M]` each: whether a channel is spatial for a filter, and its slot."""
    spatial = filter[:, None] == channel
    return spatial, (spatial.cumsum(1) - 1).clamp(min=0)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"a {name} of shape {tuple(tensor.shape)}; the layer's is {expected}")


def _is_transformed() -> bool:
    """Whether somebody looks at the operators who knows PyTorch's own ones only: `torch.func`, or an exporter to ONNX."""
    if torch.onnx.is_in_onnx_export():
        return True
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def select_channels(images: Tensor, order: Tensor) -> Tensor:
    """The channels in another order, in the memory format of the images; `index_select` alone would lose it."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).index_select(3, order).permute(0, 3, 1, 2)
    return images.index_select(1, order)


def _operator(in_channels: int, out_channels: int, geometry: dict, arrangement: dict, bias: bool) -> dict[str, Any]:
    """A HetConv layer as a `conv2d` operator of a model file."""
    pattern = {"in_channels": in_channels, "out_channels": out_channels, "arrangement": arrangement}
    return {
        "op": "conv2d",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "geometry": geometry,
        "kind": {"het": pattern},
        "bias": bias,
    }
