"""Networks of model files as PyTorch modules, and back."""

from __future__ import annotations

import copy
import ctypes
import json
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _native
from .layer import HetConv2d

__all__ = ["Network", "load_model_file", "network", "save_model_file"]

_ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "silu": F.silu,
}
# The most dots of a node's name: each is a module in another, and PyTorch goes through them by recursion.
_DEEPEST = 50


class Network(nn.Module):
    """A network that is described by the graph of a model file.

    Its state dict has the names of the file's tensors: what `safetensors.torch.load_file` reads of a model file can be given
    to `load_state_dict`. Layers are modules under the names of their nodes; `network.conv2` is a `HetConv2d`, and the
    batch-norm `conv2.bn` behind it is `network.conv2.bn`. Where a name means something else already, `_` is added to it: the
    node `block.type` is `network.block.type_`, with the tensor `block.type.weight` in the state dict as in the file.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description
        """What the file says besides its tensors: `graph`, `classes`, `normalisation` (`None` if it says nothing of that)."""
        nodes = self.description["graph"]["nodes"]
        modules = [(node["name"], module) for node in nodes if (module := _module(node["op"])) is not None]
        last = {value: index for index, node in enumerate(nodes) for value in node.get("inputs", [])}
        outputs = self.description["graph"]["outputs"]
        self._dead = [[] for _ in nodes]
        for value, index in last.items():
            if value not in outputs:
                self._dead[index].append(value)
        self._with_weights = {name for name, _ in modules}
        self._inputs = sum(node["op"]["op"] == "input" for node in nodes)
        self._places: dict[str, str] = {}
        # After all attributes, whose names these leave alone. The ones that others are part of by their names come first.
        for name, module in sorted(modules, key=lambda item: item[0].count(".")):
            if name.count(".") > _DEEPEST:
                raise _native.Error(f"the name of node `{name}` has more than {_DEEPEST} dots")
            self._place(name, module)
        self.register_state_dict_post_hook(_rename_as_in_file)

    def _place(self, name: str, module: nn.Module) -> None:
        """Makes a module part of the one that its name says."""
        stem, dot, own = name.rpartition(".")
        if dot and stem not in self._places:
            self._place(stem, nn.Module())
        path = self._places[stem] + dot if dot else ""
        parent = self.get_submodule(path.removesuffix("."))
        while not own or hasattr(parent, own):
            own += "_"
        parent.add_module(own, module)
        self._places[name] = path + own

    def _layer(self, node: dict[str, Any]) -> nn.Module | None:
        """The module of a node, if it has weights."""
        return self.get_submodule(self._places[node["name"]]) if node["name"] in self._with_weights else None

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        _rename(state_dict, prefix, self._places)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def name(self) -> str:
        """What the network calls itself."""
        return self.description["graph"]["name"]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of an image."""
        nodes = self.description["graph"]["nodes"]
        return next(tuple(node["op"]["shape"]) for node in nodes if node["op"]["op"] == "input")

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of every channel, for pixels from 0 to 1; `None` if the file does not state them, and
        for fresh weights. `forward` does not apply them."""
        stated = self.description["normalisation"]
        return None if stated is None else (stated["mean"], stated["std"])

    def forward(self, *images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's results for its inputs, `[batch, channels, height, width]` each."""
        graph, values, inputs = self.description["graph"], [], iter(images)
        if len(images) != self._inputs:
            raise TypeError(f"{len(images)} inputs for a network that has {self._inputs}")
        for node, dead in zip(graph["nodes"], self._dead):
            if node["op"]["op"] == "input":
                values.append(next(inputs))
                continue
            operands = [values[value] for value in node["inputs"]]
            values.append(_compute(node["op"], self._layer(node), operands, self.training))
            for value in dead:
                values[value] = None
        results = tuple(values[output] for output in graph["outputs"])
        return results[0] if len(results) == 1 else results


def _rename_as_in_file(network: Network, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """What a state dict goes through last."""
    _rename(state_dict, prefix, {place: name for name, place in network._places.items()})


def _rename(state_dict: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
    """Gives what is below a prefix the other names of the modules that it belongs to, in the order that it has."""
    if all(one == other for one, other in names.items()):
        return
    for key, value in [(key, state_dict.pop(key)) for key in list(state_dict) if key.startswith(prefix)]:
        own = module = key.removeprefix(prefix)
        # The innermost one that has two names: there may be others below.
        while "." in module:
            module = module.rpartition(".")[0]
            if module in names:
                own = names[module] + own[len(module) :]
                break
        state_dict[prefix + own] = value


class _BatchNorm(nn.BatchNorm2d):
    """Batch-norm of images or features. Its count of batches, which model files have not, is not part of its state."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__(channels, eps=epsilon)
        self.register_buffer("num_batches_tracked", self.num_batches_tracked, persistent=False)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        # Older versions had no such count, so that PyTorch would make one up.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *rest)


class UnevenlyPaddedConv2d(nn.Conv2d):
    """A convolution that pads its sides differently, which PyTorch's own cannot."""

    margins: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:
        """`[batch, channels, height, width]`, with zeros at the left, right, top and bottom."""
        return super().forward(F.pad(input, self.margins))


def _module(op: dict[str, Any]) -> nn.Module | None:
    """The module of an operator that has weights."""
    match op["op"]:
        case "conv2d":
            if isinstance(op["kind"], dict) and "het" in op["kind"]:
                return HetConv2d.from_operator(op)
            groups = op["kind"]["grouped"] if isinstance(op["kind"], dict) else 1
            geometry = op["geometry"]
            top, left, bottom, right = geometry["padding"]
            window = {key: tuple(geometry[key]) for key in ("stride", "dilation")}
            window["padding"] = (top, left) if (top, left) == (bottom, right) else 0
            sizes = op["in_channels"], op["out_channels"], tuple(geometry["kernel"])
            layer = nn.Conv2d(*sizes, **window, groups=groups, bias=op["bias"])
            if (top, left) != (bottom, right):
                layer.__class__ = UnevenlyPaddedConv2d
                layer.margins = (left, right, top, bottom)
            return layer
        case "batch_norm":
            return _BatchNorm(op["channels"], op["epsilon"])
        case "linear":
            return nn.Linear(op["in_features"], op["out_features"], bias=op["bias"])
    return None


def _compute(op: dict[str, Any], layer: nn.Module | None, operands: list[Tensor], training: bool) -> Tensor:
    """One operator."""
    first = operands[0]
    match op["op"]:
        case "conv2d" | "batch_norm" | "linear":
            return layer(first)
        case "activation":
            return _ACTIVATIONS[op["function"]](first)
        case "add":
            return sum(operands[1:], first)
        case "mul":
            return first * operands[1]
        case "concat":
            return torch.cat(operands, 1)
        case "max_pool":
            return _max_pool(first, op["geometry"])
        case "avg_pool":
            return _avg_pool(first, op["geometry"], op["count_padding"])
        case "global_avg_pool":
            return first.mean((2, 3), keepdim=True)
        case "flatten":
            return first.flatten(1)
        case "softmax":
            return first.softmax(1)
        case "gather":
            return _gather(first, op["channels"], op["stride"], training)
    raise ValueError(f"operator `{op['op']}` is not known")


def _max_pool(image: Tensor, geometry: dict[str, Any]) -> Tensor:
    top, left, bottom, right = geometry["padding"]
    window = tuple(geometry["kernel"]), tuple(geometry["stride"])
    if (top, left) == (bottom, right) and 2 * top <= window[0][0] and 2 * left <= window[0][1]:
        return F.max_pool2d(image, *window, (top, left), tuple(geometry["dilation"]))
    image = F.pad(image, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(image, *window, 0, tuple(geometry["dilation"]))


def _avg_pool(image: Tensor, geometry: dict[str, Any], count_padding: bool) -> Tensor:
    top, left, bottom, right = geometry["padding"]
    window = tuple(geometry["kernel"]), tuple(geometry["stride"])
    if geometry["dilation"] != [1, 1]:
        raise ValueError("PyTorch has no average pool with dilation")
    padding = (left, right, top, bottom)
    mean = F.avg_pool2d(F.pad(image, padding) if any(padding) else image, *window)
    if count_padding or not any(padding):
        return mean
    inside = F.pad(torch.ones_like(image[:1, :1]), padding)
    return mean / F.avg_pool2d(inside, *window)


def _gather(image: Tensor, channels: list[int | None], stride: int, training: bool) -> Tensor:
    # The slice is the faster one to train; the pool is what every reader of ONNX files knows.
    image = image[:, :, ::stride, ::stride] if training else F.avg_pool2d(image, 1, stride)
    zeros = channels.count(None)
    kept = len(channels) - zeros
    if channels[:kept] == list(range(kept)) and kept <= image.shape[1]:
        # The shortcut of residual networks.
        return F.pad(image[:, :kept], (0, 0, 0, 0, 0, zeros))
    index = torch.tensor([channel or 0 for channel in channels], device=image.device)
    picked = image.index_select(1, index)
    if zeros:
        empty = torch.tensor([channel is None for channel in channels], device=image.device)
        picked = picked.masked_fill(empty[:, None, None], 0)
    return picked


def network(
    name: str, classes: int | None = None, *, seed: int = 0, image_size: tuple[int, int] | None = None
) -> Network:
    """A network of the paper with fresh weights, such as `vgg16-cifar_p4`; see `hetconv.network_names`.

    The same seed gives the weights that `hetconv train` begins with. `image_size` is `(height, width)` of its images, the
    usual one of the network unless given; `hetconv.Error` is raised if it does not fit the network.
    """
    return _assembled(*_native.build_model(name, classes, seed, image_size))


def load_model_file(path: str | os.PathLike[str], *, image_size: tuple[int, int] | None = None) -> Network:
    """The network in a model file, or in an ONNX file that this project can read.

    `image_size` is `(height, width)` of the images, needed where an ONNX file leaves them open. Raises `OSError` for a file
    that cannot be read, `hetconv.Error` for one that holds no network, or one for images of another size.
    """
    return _assembled(*_native.read_model(os.fspath(path), image_size))


def save_model_file(
    model: Network,
    path: str | os.PathLike[str],
    *,
    class_names: list[str] | None = None,
    normalisation: tuple[list[float], list[float]] | None = None,
) -> None:
    """Writes a network as a model file, for `hetconv.Runtime` and the `hetconv` command.

    Class names, and mean and standard deviation of the channels of images from 0 to 1, are those that the network was loaded
    with unless given. The file is written beside its place and renamed.

    Raises `hetconv.Error`, a `ValueError`, if the normalisation is neither given nor known, as it is not of fresh weights and
    of many ONNX files; `TypeError` for any other module, which `export_onnx` writes.
    """
    if not isinstance(model, Network):
        kind = type(model).__name__
        raise TypeError(f"a model file describes a `Network`, which {kind} is not; write it by `export_onnx`")
    description = copy.deepcopy(model.description)
    for node in description["graph"]["nodes"]:
        if isinstance(layer := model._layer(node), HetConv2d):
            # It may have been converted since.
            node["op"] = layer.operator
    if class_names is not None:
        description["classes"] = list(class_names)
    if normalisation is not None:
        mean, std = normalisation
        description["normalisation"] = {"mean": list(map(float, mean)), "std": list(map(float, std))}
    tensors = {name: (list(tensor.shape), _bytes(tensor)) for name, tensor in model.state_dict().items()}
    _native.write_model(os.fspath(path), json.dumps(description), tensors)


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    return ctypes.string_at(tensor.data_ptr(), 4 * tensor.numel()) if tensor.numel() else b""


def _assembled(description: str, tensors: dict[str, tuple[list[int], bytes]]) -> Network:
    model = Network(json.loads(description))
    state = {}
    for name, (shape, data) in tensors.items():
        values = torch.frombuffer(bytearray(data), dtype=torch.float32) if data else torch.empty(0)
        state[name] = values.view(shape)
    model.load_state_dict(state)
    return model
