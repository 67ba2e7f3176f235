"""A model file of this project as a PyTorch module.

The file's graph is the only description of the network there is; this reads it and nothing else. A HetConv layer
becomes what PyTorch can do best with it, in one of two forms:

* `grouped`: a grouped K×K convolution (centre taps 0) plus a 1×1 convolution over all channels;
* `dense`: a standard K×K convolution with zero taps, whose gradient is masked.

The grouped form needs the channels of a class side by side. With `gathers` they are brought there and back, and the
result is exact; without, the network is taken as if its channels were stored in that order, which costs nothing and
computes the same amount, but not the same function, if the file's order is another one.
"""

import json
import struct

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

ACTIVATIONS = {
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
}
# Operators whose backward pass does not read their own result: what follows may overwrite it.
OVERWRITABLE = {"conv2d", "batch_norm", "linear", "add", "identity"}


def read(path):
    """The graph and the tensors of a model file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return json.loads(header["__metadata__"]["hetconv"])["graph"], load_file(path)


def single_layer(filters, size, parts):
    """The graph of one 3×3 convolution, HetConv if it has more than one part, and random tensors for it."""
    pattern = {"in_channels": filters, "out_channels": filters, "arrangement": {"shifted": {"parts": parts}}}
    geometry = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
    op = {"op": "conv2d", "in_channels": filters, "out_channels": filters, "geometry": geometry, "bias": False}
    op["kind"] = "standard" if parts == 1 else {"het": pattern}
    image = {"name": "input", "op": {"op": "input", "shape": [filters, size, size]}}
    graph = {"nodes": [image, {"name": "conv", "op": op, "inputs": [0]}], "outputs": [1]}
    if parts == 1:
        return graph, {"conv.weight": torch.randn(filters, filters, 3, 3) * 0.05}
    ring = torch.randn(filters, filters // parts, 8) * 0.05
    return graph, {"conv.center": torch.randn(filters, filters) * 0.05, "conv.ring": ring}


def fold_batch_norms(graph, tensors):
    """The same network for inference: batch-norms behind a convolution or linear layer become part of it."""
    graph, tensors = json.loads(json.dumps(graph)), dict(tensors)
    nodes = graph["nodes"]
    for node in nodes:
        producer = nodes[node["inputs"][0]] if node["op"]["op"] == "batch_norm" else None
        if (
            producer is None
            or producer["op"]["op"] not in ("conv2d", "linear")
            or consumers(graph, node["inputs"][0]) > 1
        ):
            continue
        weight, bias, mean, var = (
            tensors.pop(f"{node['name']}.{suffix}") for suffix in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / torch.sqrt(var + node["op"]["epsilon"])
        for name in (f"{producer['name']}.{suffix}" for suffix in ("weight", "center", "ring")):
            if name in tensors:
                tensors[name] = tensors[name] * scale.view(-1, *[1] * (tensors[name].dim() - 1))
        name = f"{producer['name']}.bias"
        tensors[name] = bias + (tensors.get(name, 0) - mean) * scale
        producer["op"]["bias"] = True
        node["op"] = {"op": "identity"}
    return graph, tensors


def consumers(graph, value):
    """How many times a value is read."""
    return sum(node.get("inputs", []).count(value) for node in graph["nodes"]) + graph["outputs"].count(value)


class Network(nn.Module):
    """The network of a graph; gives its first output."""

    def __init__(self, graph, tensors, form="grouped", gathers=False):
        super().__init__()
        nodes = graph["nodes"]
        self.input_shape = nodes[0]["op"]["shape"]
        self.inputs = [node.get("inputs", []) for node in nodes]
        self.output = graph["outputs"][0]
        last = {value: id for id, inputs in enumerate(self.inputs) for value in inputs}
        self.dead = [[value for value in set(inputs) if last[value] == id] for id, inputs in enumerate(self.inputs)]
        self.layers = nn.ModuleList()
        for node, inputs in zip(nodes, self.inputs):
            own = {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == node["name"]}
            overwrite = any(nodes[id]["op"]["op"] in OVERWRITABLE and consumers(graph, id) == 1 for id in inputs[:1])
            self.layers.append(layer(node["op"], own, overwrite, form, gathers))

    def forward(self, images):
        """Logits (or whatever the graph puts out) of a batch of NCHW images."""
        values = [images]
        for inputs, layer, dead in zip(self.inputs[1:], self.layers[1:], self.dead[1:]):
            values.append(layer(*[values[input] for input in inputs]))
            for value in dead:
                values[value] = None
        return values[self.output]


def layer(op, tensors, overwrite, form, gathers):
    """The module of one operator."""
    match op["op"]:
        case "input" | "identity":
            return nn.Identity()
        case "conv2d":
            geometry, bias = op["geometry"], tensors.get("bias")
            match op["kind"]:
                case {"het": pattern}:
                    weight = dense_weight(pattern, geometry, tensors["center"], tensors["ring"])
                    return het_conv(pattern, geometry, weight, bias, form, gathers)
                case {"grouped": groups}:
                    return convolution(geometry, tensors["weight"], bias, groups)
            return convolution(geometry, tensors["weight"], bias)
        case "batch_norm":
            return filled(BatchNorm(op["channels"], eps=op["epsilon"]), tensors)
        case "linear":
            return filled(nn.Linear(op["in_features"], op["out_features"], bias="bias" in tensors), tensors)
        case "activation":
            return nn.ReLU(overwrite) if op["function"] == "relu" else ACTIVATIONS[op["function"]]()
        case "add" | "mul" | "concat" as name:
            return Elementwise(name, overwrite)
        case "max_pool":
            return nn.MaxPool2d(**window(op["geometry"]), dilation=op["geometry"]["dilation"])
        case "avg_pool":
            return nn.AvgPool2d(**window(op["geometry"]), count_include_pad=op["count_padding"])
        case "global_avg_pool":
            return nn.AdaptiveAvgPool2d(1)
        case "flatten":
            return nn.Flatten()
        case "softmax":
            return nn.Softmax(1)
        case "gather":
            return Shortcut(op["channels"], op["stride"])
    raise ValueError(f"operator {op['op']} is not known")


def window(geometry):
    """Kernel, stride and padding as PyTorch names them."""
    top, left, bottom, right = geometry["padding"]
    if (top, left) != (bottom, right):
        raise ValueError(f"padding {geometry['padding']} is not the same on both sides")
    return {"kernel_size": tuple(geometry["kernel"]), "stride": tuple(geometry["stride"]), "padding": (top, left)}


def filled(module, tensors):
    """A module with these tensors in place of its own."""
    module.load_state_dict(tensors, strict=False)
    return module


def convolution(geometry, weight, bias=None, groups=1, kind=nn.Conv2d):
    """A convolution with this weight `[N, M/groups, kh, kw]`."""
    options = {"groups": groups, "bias": bias is not None, "dilation": tuple(geometry["dilation"])}
    module = kind(weight.shape[1] * groups, weight.shape[0], **window(geometry), **options)
    return filled(module, {"weight": weight} | ({} if bias is None else {"bias": bias}))


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch-norm of images or features."""

    def _check_input_dim(self, values):
        pass


class Elementwise(nn.Module):
    """Sum (in the place of the first summand where allowed), product or concatenation."""

    def __init__(self, name, overwrite):
        super().__init__()
        self.name, self.overwrite = name, overwrite

    def forward(self, first, *others):
        """The result."""
        if self.name == "concat":
            return torch.cat([first, *others], 1)
        for other in others:
            if self.name == "mul":
                first = first * other
            else:
                first = first.add_(other) if self.overwrite else first + other
        return first


class Shortcut(nn.Module):
    """The parameter-free shortcut of ResNet: every so many pixels, and zero channels appended."""

    def __init__(self, channels, stride):
        super().__init__()
        self.stride, self.zeros = stride, channels.count(None)
        kept = len(channels) - self.zeros
        if channels != [*range(kept), *[None] * self.zeros]:
            raise ValueError("only a gather that appends zero channels is known")

    def forward(self, image):
        """The shortcut. The slice is the faster one to train; the pool is what every converter of ONNX files knows."""
        if self.training:
            image = image[:, :, :: self.stride, :: self.stride]
        else:
            image = F.avg_pool2d(image, 1, self.stride)
        return F.pad(image, (0, 0, 0, 0, 0, self.zeros))


def classes(pattern):
    """Class of every channel and of every filter of a HetConv layer."""
    channels, filters = pattern["in_channels"], pattern["out_channels"]
    ((arrangement, fields),) = pattern["arrangement"].items()
    if arrangement == "assigned":
        return torch.tensor(fields["channels"]), torch.tensor(fields["filters"])
    parts, c, f = fields["parts"], torch.arange(channels), torch.arange(filters)
    if arrangement == "shifted":
        return c % parts, f % parts
    return c * parts // channels, f * parts // filters


def spatial_pairs(pattern):
    """`[N, M]`: whether a filter keeps its whole window on a channel."""
    channel, filter = classes(pattern)
    return filter[:, None] == channel


def dense_weight(pattern, geometry, center, ring):
    """The weight `[N, M, kh, kw]` of the standard convolution that a HetConv layer is, from its canonical tensors."""
    spatial = spatial_pairs(pattern)
    slot = (spatial.cumsum(1) - 1).clamp(min=0)
    taps = ring.gather(1, slot[:, :, None].expand(-1, -1, ring.shape[2])) * spatial[:, :, None]
    before, after = taps.chunk(2, 2)
    return torch.cat([before, center[:, :, None], after], 2).unflatten(2, geometry["kernel"])


def het_conv(pattern, geometry, weight, bias, form, gathers):
    """A HetConv layer with the given dense weight."""
    if form == "grouped":
        return GroupedHetConv(pattern, geometry, weight, bias, gathers)
    kept = spatial_pairs(pattern)[:, :, None, None].expand(*weight.shape).to(weight.dtype).clone()
    kept[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
    module = convolution(geometry, weight, bias, kind=DenseHetConv)
    module.register_buffer("kept", kept)
    return module


class DenseHetConv(nn.Conv2d):
    """HetConv as a standard convolution with zero taps; exact for every pattern."""

    def forward(self, image):
        """The layer; in training the zero taps are kept from learning."""
        return self._conv_forward(image, self.weight * self.kept if self.training else self.weight, self.bias)


class GroupedHetConv(nn.Module):
    """HetConv as a grouped convolution and a 1×1 convolution, for classes of equal size."""

    def __init__(self, pattern, geometry, weight, bias, gathers):
        super().__init__()
        channel, filter = classes(pattern)
        parts = int(max(channel.max(), filter.max())) + 1
        if any(len(set(of.bincount(minlength=parts).tolist())) > 1 for of in (channel, filter)):
            raise ValueError(f"the classes of {pattern} differ in size: a grouped convolution cannot compute it")
        channels, filters = channel.argsort(stable=True), filter.argsort(stable=True)
        weight = weight[filters][:, channels]
        y, x = weight.shape[2] // 2, weight.shape[3] // 2
        spatial = torch.cat([rows.chunk(parts, 1)[part] for part, rows in enumerate(weight.chunk(parts))])
        spatial[:, :, y, x] = 0
        self.spatial = convolution(geometry, spatial, groups=parts)
        point = {**geometry, "kernel": [1, 1], "padding": [0] * 4, "dilation": [1, 1]}
        self.pointwise = convolution(point, weight[:, :, y, x, None, None], None if bias is None else bias[filters])
        # How far outside the image (or inside, if negative) the centre tap of the first window lies.
        top, left = (
            geometry["padding"][0] - y * geometry["dilation"][0],
            geometry["padding"][1] - x * geometry["dilation"][1],
        )
        self.margin = [left, left, top, top]
        self.gathers = gathers
        self.register_buffer("channels", channels)
        self.register_buffer("filters", filters.argsort())

    def forward(self, image):
        """The layer."""
        if self.gathers:
            image = image.index_select(1, self.channels)
        result = self.pointwise(F.pad(image, self.margin) if any(self.margin) else image).add_(self.spatial(image))
        return result.index_select(1, self.filters) if self.gathers else result
