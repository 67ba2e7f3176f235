"""Whole models: conversion, model files, ONNX."""

import copy
import importlib.util
import json

import pytest
from conftest import OPEN_SIZE

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import hetconv  # noqa: E402
from hetconv import _native  # noqa: E402
from hetconv.torch import (  # noqa: E402
    Decomposed,
    HetConv2d,
    convert,
    decompose,
    export_onnx,
    load_model_file,
    network,
    save_model_file,
)

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
PLAIN = [0.0] * 3, [1.0] * 3
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx and onnxscript")


class Block(nn.Module):
    """Something like what people write."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, channels, 1)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        return self.deep(torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))) + self.down(x)))


def model(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16), nn.Conv2d(16, 24, 5, stride=2, padding=2)]
    return nn.Sequential(*layers, nn.Conv2d(24, 8, (1, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_convert_reports_every_convolution():
    net = model()
    dense = copy.deepcopy(net)
    report = convert(net, parts=4, example=torch.randn(2, 3, 8, 8))
    assert [layer.name for layer in report.converted] == ["2.conv1", "2.conv2", "3"]
    assert {layer.name: layer.note for layer in report.kept} == {
        "0": "the first convolution",
        "2.down": "pointwise",
        "2.deep": "has 16 groups",
        "4": "a 1×3 kernel",
    }
    assert type(net[2].conv1) is HetConv2d and net[2].conv1.bias is None and net[2].conv1.parts == 4
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["2.conv1"].weights == (16 * 16 * 9, 16 * 16 + 16 * 4 * 8)
    assert by_name["2.conv1"].macs == (16 * 16 * 9 * 64, (16 * 16 + 16 * 4 * 8) * 64)
    assert by_name["3"].macs == (16 * 24 * 25 * 16, (16 * 24 + 24 * 4 * 24) * 16)
    assert report.weights[0] == sum(m.weight.numel() for m in dense.modules() if isinstance(m, nn.Conv2d))
    assert "2.conv1" in str(report) and "the first convolution" in str(report)
    # The taps that are left are those of the dense model.
    kept = net[3].dense_weight() != 0
    assert torch.equal(net[3].dense_weight()[kept], dense[3].weight[kept])
    assert torch.equal(net[3].bias, dense[3].bias)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_macs_of_convolutions_that_the_example_does_not_use():
    class Auxiliary(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    net = Auxiliary(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    report = convert(net, parts=4, example=torch.randn(1, 3, 6, 6))
    assert [layer.macs[0] for layer in report.layers] == [3 * 8 * 9 * 16, 8 * 8 * 9 * 4, 0]
    assert report.layers[2].note == "not used for the example"
    assert report.macs == (3 * 8 * 9 * 16 + 8 * 8 * 9 * 4, 3 * 8 * 9 * 16 + (8 * 8 + 8 * 2 * 8) * 4)


def test_convert_as_told():
    net = model()
    report = convert(net, 8, ["2.*"], "random", arrangement="blocked", keep_first=False, parts_by_name={"3": 5})
    used = {layer.name: (layer.parts, layer.note) for layer in report.converted}
    assert used == {"3": (4, "P = 5 does not fit")}
    assert {layer.name: layer.note for layer in report.kept}["2.conv1"] == "excluded"
    # 3 input channels and 16 filters have no common divisor.
    assert {layer.name: layer.note for layer in report.kept}["0"] == "P = 8 does not fit"
    assert net[3].arrangement == "blocked"
    net = model()
    report = convert(net, 64, exclude=lambda name: name.endswith("conv2"))
    assert {layer.name: layer.parts for layer in report.converted} == {"2.conv1": 16, "3": 16}

    with pytest.raises(ValueError, match="the first convolution"):
        convert(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ValueError, match="HetConv already"):
        convert(nn.Sequential(HetConv2d(8, 8, 3)), keep_first=False)
    with pytest.raises(ValueError, match="no convolutions"):
        convert(nn.Linear(3, 8))
    for itself in (nn.Conv2d(8, 8, 3), HetConv2d(8, 8, 3)):
        with pytest.raises(ValueError, match="itself"):
            convert(itself)
    for wrong in (dict(parts=0), dict(init="magic"), dict(arrangement="assigned")):
        with pytest.raises(ValueError):
            convert(model(), **wrong)


def test_hetconv_layers_are_convolutions_of_the_model_too():
    net, x = network("small-cifar", seed=8), torch.randn(1, 3, 32, 32)
    once = convert(net, 4, exclude=["conv3"], keep_first=False, example=x)
    again = convert(net, 2, example=x)
    assert {layer.name: (layer.parts, layer.note) for layer in again.layers} == {
        "conv1": (None, "the first convolution"),
        "conv2": (None, "HetConv already"),
        "conv3": (2, ""),
        "conv4": (None, "HetConv already"),
    }
    assert (again.weights[0], again.macs[0]) == (once.weights[1], once.macs[1])


def test_fresh_weights_come_with_the_biases_of_before():
    net = model()
    dense = copy.deepcopy(net)
    report = convert(net, init="random")
    assert [layer.name for layer in report.converted] == ["2.conv1", "2.conv2", "3"]
    for het, conv, middle in [(net[2].conv2, dense[2].conv2, 1), (net[3], dense[3], 2)]:
        assert torch.equal(het.bias, conv.bias)
        assert not torch.equal(het.center, conv.weight[:, :, middle, middle])


def test_hooks_on_results_and_gradients_go_over_to_the_layer():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    x, y = torch.randn(1, 3, 8, 8), torch.randn(1, 8, 6, 6, requires_grad=True)
    called = []

    def hook(name, arguments):
        def note(*given):
            assert len(given) == arguments
            called.append((name, given[0]))

        return note

    handles = [
        net[1].register_forward_pre_hook(hook("before", 2)),
        net[1].register_forward_pre_hook(hook("before, by keyword", 3), with_kwargs=True),
        net[1].register_forward_hook(hook("after", 3)),
        net[1].register_forward_hook(hook("after, by keyword", 4), with_kwargs=True),
        net[1].register_full_backward_pre_hook(hook("gradient before", 2)),
        net[1].register_full_backward_hook(hook("gradient after", 3)),
    ]
    names = ["before", "before, by keyword", "after", "after, by keyword", "gradient before", "gradient after"]
    convert(net, 2)
    plain, alone = decompose(net), decompose(net[1])
    assert [type(layer) for layer in (net[1], plain[1], alone)] == [HetConv2d, Decomposed, Decomposed]
    for layer, whole, images in [(net[1], net, x), (plain[1], plain, x), (alone, alone, y)]:
        whole(images).sum().backward()
        assert called == [(name, layer) for name in names]
        called.clear()
    # Whoever registered a hook can still remove it.
    for handle in handles:
        handle.remove()
    net(x).sum().backward()
    assert called == []


def test_patterns_that_match_nothing_are_warned_of():
    with pytest.warns(UserWarning) as warned:
        convert(model(3), exclude=["9*", "[0-9]*.no"], parts_by_name={"x": 2})
    assert sorted(str(warning.message).split()[0] for warning in warned) == ["'9*'", "'[0-9]*.no'", "'x'"]


def test_what_is_not_a_layers_own_stays():
    net = model()
    prune.random_unstructured(net[2].conv1, "weight", 0.5)
    net[2].conv2.weight.requires_grad_(False)
    net.add_module("tied", nn.Conv2d(24, 24, 5))
    net.tied.weight = nn.Conv2d(24, 24, 5).weight
    net.add_module("other", nn.Conv2d(24, 24, 5))
    net.other.weight = net.tied.weight
    net[2].bn1.eval()
    training = {name: module.training for name, module in net.named_modules()}
    report = convert(nn.ModuleList([net, net.tied, net.other]))
    notes = {layer.name: layer.note for layer in report.kept}
    assert "hook" in notes["0.2.conv1"]
    assert notes["0.tied"] == notes["0.other"] == "shares its weights with another"
    assert "0.2.conv2" in [layer.name for layer in report.converted]
    # What was trained of a layer is trained, and nothing else.
    trained = {name: parameter.requires_grad for name, parameter in net[2].conv2.named_parameters()}
    assert trained == {"center": False, "ring": False, "bias": True}
    assert {name: module.training for name, module in net.named_modules()} == training


def test_an_example_leaves_frozen_modules_frozen():
    net = model()
    net[2].bn1.eval()
    convert(net, example=torch.randn(1, 3, 8, 8))
    assert net.training and net[2].conv1.training and not net[2].bn1.training
    with pytest.raises(ValueError, match="P = 0 for '3'"):
        convert(model(), parts_by_name={"3": 0})


def test_a_module_used_twice_is_converted_once():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), shared, shared)
    net.register_module("alias", shared)
    report = convert(net)
    assert len(report.converted) == 1 and net[1] is net[2] is net.alias


def test_one_part_with_projection_changes_nothing():
    torch.manual_seed(1)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    het = HetConv2d(8, 8, 3, padding=1, parts=1)
    het.load_state_dict(conv.state_dict())
    x = torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(het(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["small-cifar_p4", "small-cifar_p3_se", "resnet20_p4", "mobilenet-cifar_p32", "small-cifar_gwc4_pwc"]
)
def test_networks_compute_what_the_runtime_does(name, tmp_path):
    torch.manual_seed(2)
    net = network(name, seed=3)
    x = torch.randn(4, *net.input_shape)
    net.train()
    for _ in range(2):  # running statistics
        net(x)
    net.eval()
    path = tmp_path / "model.safetensors"
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    classes = [f"class {i}" for i in range(10)]
    save_model_file(net, path, class_names=classes, normalisation=(mean, std))
    runtime = hetconv.Runtime(path, exact=True)
    assert runtime.name == name and runtime.class_names == classes
    assert runtime.normalisation[1] == pytest.approx(std)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(
        torch.tensor(runtime.run(x)), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )

    again = load_model_file(path)
    assert again.description["classes"] == classes
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values()))
    save_model_file(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_state_dicts_are_the_tensors_of_model_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    net = network("resnet20_p4", seed=1)
    path = tmp_path / "model.safetensors"
    save_model_file(net, path, normalisation=PLAIN)
    tensors = safetensors.load_file(path)
    assert set(tensors) == set(net.state_dict())
    other = network("resnet20_p4", seed=2)
    other.load_state_dict(tensors)
    assert all(torch.equal(a, tensors[name]) for name, a in other.state_dict().items())


def test_a_converted_network_is_a_model_file_again(tmp_path):
    net = network("small-cifar", seed=4).eval()
    convert(net, 4)
    path = tmp_path / "model.safetensors"
    save_model_file(net, path, normalisation=PLAIN)
    x = torch.randn(2, 3, 32, 32)
    found = torch.tensor(hetconv.Runtime(path, exact=True).run(x))
    torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-4)
    assert isinstance(load_model_file(path).conv3, HetConv2d)


def test_a_model_file_needs_a_normalisation(tmp_path):
    for channels, net in [(4, load_model_file(OPEN_SIZE, image_size=(9, 11))), (3, network("small-cifar_p4"))]:
        assert net.normalisation is None
        path, again = tmp_path / f"{channels}.safetensors", tmp_path / "again.safetensors"
        with pytest.raises(ValueError, match="give `normalisation`"):
            save_model_file(net, path)
        assert not path.exists()
        stated = [0.5] * channels, [0.25] * channels
        save_model_file(net, path, normalisation=stated)
        assert load_model_file(path).normalisation == hetconv.Runtime(path).normalisation == stated
        save_model_file(load_model_file(path), again)
        assert again.read_bytes() == path.read_bytes()


def write_convolutions(path, *layers):
    """A model file with one convolution behind another, each a name and, if given, stride and padding."""
    nodes, tensors = [{"name": "x", "op": {"op": "input", "shape": [4, 9, 8]}}], {}
    for name, *window in layers:
        stride, padding = window or (1, [1] * 4)
        geometry = {"kernel": [3, 3], "stride": [stride] * 2, "padding": padding, "dilation": [1, 1]}
        op = {
            "op": "conv2d",
            "in_channels": 4,
            "out_channels": 4,
            "geometry": geometry,
            "kind": "standard",
            "bias": True,
        }
        nodes.append({"name": name, "op": op, "inputs": [len(nodes) - 1]})
        for tensor, shape in [("weight", [4, 4, 3, 3]), ("bias", [4])]:
            tensors[f"{name}.{tensor}"] = (shape, torch.randn(shape).numpy().tobytes())
    description = {
        "graph": {"name": "convolutions", "nodes": nodes, "outputs": [len(layers)]},
        "classes": [],
        "normalisation": {"mean": [0.0] * 4, "std": [1.0] * 4},
    }
    _native.write_model(path, json.dumps(description), tensors)


def test_uneven_padding_survives_a_conversion(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "model.safetensors"
    write_convolutions(path, ("first",), ("uneven", 2, [1, 0, 2, 1]), ("even",))
    net = load_model_file(path)
    dense = copy.deepcopy(net)
    x = torch.randn(2, 4, 9, 8)

    def agrees():
        found = torch.tensor(hetconv.Runtime(path, exact=True).run(x))
        torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-4)

    agrees()
    report = convert(net, 2)
    assert {layer.name: layer.parts for layer in report.layers} == {"first": None, "uneven": 2, "even": 2}
    # The standard convolution with the taps that are left.
    kept = net.uneven.dense_weight() != 0
    assert torch.equal(net.uneven.dense_weight()[kept], dense.uneven.weight[kept]) and not kept.all()
    with torch.no_grad():
        dense.uneven.weight.masked_fill_(~kept, 0)
    y = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(net.uneven(y), dense.uneven(y), rtol=1e-4, atol=1e-5)
    save_model_file(net, path)
    agrees()


@pytest.mark.parametrize(
    "names",
    [
        {"name": "name_"},
        {"description": "description_", "forward": "forward_", "_places": "_places_"},
        {"block.type": "block.type_", "block.type.bn": "block.type_.bn", "block.plain": "block.plain"},
        {"float": "float_", "float_": "float__"},
        {"float_": "float_", "float": "float__"},
        {"a..b": "a.__.b", "a._": "a._", ".": "_._", "..": "_._._", ".a": "_.a", "a": "a"},
        {"first": "first", "first.bias": "first.bias_", "first.kernel_size": "first.kernel_size_"},
        {"first.bias.x": "first.bias_.x", "first": "first"},
    ],
    ids=lambda names: " ".join(names),
)
def test_names_that_pytorch_has_other_uses_for(tmp_path, names):
    torch.manual_seed(6)
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    write_convolutions(path, *((name,) for name in names))
    net = load_model_file(path)
    assert {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)} == set(names.values())
    # The tensors have the names of the file, and a state dict of any such network can be loaded.
    state = net.state_dict()
    assert set(state) == {f"{name}.{tensor}" for name in names for tensor in ("weight", "bias")}
    for name, place in names.items():
        assert torch.equal(state[f"{name}.weight"], net.get_submodule(place).weight)
    save_model_file(net, again)
    assert again.read_bytes() == path.read_bytes()
    wrapped = nn.Sequential(nn.Linear(1, 1), copy.deepcopy(net))
    for parameter in wrapped.parameters():
        nn.init.zeros_(parameter)
    own = {f"1.{name}": tensor for name, tensor in state.items()}
    wrapped.load_state_dict({"0.weight": torch.zeros(1, 1), "0.bias": torch.zeros(1), **own})
    assert list(wrapped.state_dict())[2:] == list(own)
    x = torch.randn(2, 4, 9, 8)
    assert torch.equal(wrapped[1](x), net(x))

    def agrees():
        found = torch.tensor(hetconv.Runtime(path, exact=True).run(x))
        torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-4)

    agrees()
    convert(net, 2, keep_first=False)
    save_model_file(net, path)
    agrees()
    torch.testing.assert_close(decompose(net)(x), net(x), rtol=1e-4, atol=1e-4)
    again = load_model_file(path)
    assert set(again.state_dict()) == {f"{name}.{own}" for name in names for own in ("center", "ring", "bias")}


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_other_names_are_compiled_and_exported(tmp_path):
    torch.manual_seed(7)
    path, x = tmp_path / "model.safetensors", torch.randn(2, 4, 9, 8)
    write_convolutions(path, ("block.type",), ("a..b",), ("a",), ("a.bias",))
    net = load_model_file(path).eval()
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), net(x))
    torch.testing.assert_close(torch.func.functional_call(net, dict(net.named_parameters()), (x,)), net(x))
    export_onnx(net, x, tmp_path / "model.onnx")
    found = torch.tensor(hetconv.Runtime(tmp_path / "model.onnx", exact=True).run(x))
    torch.testing.assert_close(found, net(x).detach(), rtol=1e-4, atol=1e-4)


def test_names_that_cannot_be_had_are_errors(tmp_path):
    path = tmp_path / "model.safetensors"
    write_convolutions(path, (".".join("a" * 51),))
    copy.deepcopy(load_model_file(path)).state_dict()
    write_convolutions(path, (".".join("a" * 1000),))
    with pytest.raises(hetconv.Error, match="node `a.a.*` has more than 50 dots"):
        load_model_file(path)
    # What a layer is replaced by may have more in it.
    for name in ("ring", "parts"):
        write_convolutions(path, ("x1",), ("first",), (f"first.{name}",))
        net = load_model_file(path)
        with pytest.raises(ValueError, match=f"first.{name} is in the way"):
            convert(net, 2)
        assert not any(isinstance(module, HetConv2d) for module in net.modules())
    write_convolutions(path, ("first",), ("first.gwc",))
    net, x = load_model_file(path), torch.randn(1, 4, 9, 8)
    convert(net, 2, keep_first=False)
    with pytest.raises(ValueError, match="first.gwc is in the way"):
        decompose(net)
    assert net(x).shape == x.shape
    layer = HetConv2d(4, 4, 3)
    layer.add_module("gwc", nn.Identity())
    with pytest.raises(ValueError, match="^gwc is in the way"):
        decompose(layer)


def test_decompose_where_padding_and_classes_are_uneven():
    geometry = {"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0, 1, 1], "dilation": [1, 1]}
    classes = {"channels": [0, 0, 0, 1, 2], "filters": [0, 1, 2, 2]}
    pattern = {"in_channels": 5, "out_channels": 4, "arrangement": {"assigned": classes}}
    operator = {"op": "conv2d", "in_channels": 5, "out_channels": 4, "geometry": geometry, "bias": True}
    layer = HetConv2d.from_operator({**operator, "kind": {"het": pattern}})
    x = torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(decompose(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_batch_norms_are_updated_as_pytorch_updates_them():
    net = network("small-cifar_p4")
    images = torch.randn(12, 3, 32, 32) * 2 + 1
    torch.optim.swa_utils.update_bn(images.split(4), net)
    # Means of the means of all batches: what the first batch-norm reads has the mean of all its values.
    norm, seen = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)), []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.eval()(images)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_as_many_inputs_as_the_network_has():
    net, image = network("small-cifar").eval(), torch.randn(1, 3, 32, 32)
    for images in [(), (image, image)]:
        with pytest.raises(TypeError, match="for a network that has 1"):
            net(*images)


def test_networks_of_another_image_size(tmp_path):
    net = network("small-cifar_p4", image_size=(40, 24)).eval()
    assert net.input_shape == (3, 40, 24)
    save_model_file(net, tmp_path / "model.safetensors", normalisation=PLAIN)
    assert hetconv.Runtime(tmp_path / "model.safetensors").input_shapes == [(3, 40, 24)]
    with pytest.raises(hetconv.Error, match="classifier|linear|fc"):
        network("vgg16", image_size=(32, 32))


def test_decompose_leaves_the_model_alone():
    net = model(3).eval()
    convert(net)
    plain = decompose(net)
    assert not any(isinstance(module, HetConv2d) for module in plain.modules())
    assert isinstance(net[3], HetConv2d)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


class Classifier(nn.Module):
    """Every form a layer is exported in: equal classes shifted and blocked, cropped, strided, uneven."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.shifted = HetConv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.blocked = HetConv2d(16, 32, 3, padding=1, stride=2, arrangement="blocked", bias=False)
        self.valid = HetConv2d(32, 32, 3)
        self.wide = HetConv2d(32, 32, 3, padding=2)
        self.uneven = HetConv2d(32, 20, 5, padding=2, parts=3)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.shifted(torch.relu(self.stem(x)))))
        x = torch.relu(self.wide(torch.relu(self.valid(torch.relu(self.blocked(x))))))
        return self.head(self.uneven(x).mean((2, 3)))


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_onnx_files_are_recognised_and_give_the_same_results(tmp_path):
    torch.manual_seed(5)
    net = Classifier()
    for _ in range(2):
        net(torch.randn(4, 3, 16, 16))
    path = tmp_path / "model.onnx"
    export_onnx(net, torch.randn(1, 3, 16, 16), path)
    assert net.training and isinstance(net.shifted, HetConv2d)
    net.eval()
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
    runtime = hetconv.Runtime(path, exact=True)
    torch.testing.assert_close(torch.tensor(runtime.run(x)), expected, rtol=1e-4, atol=1e-5)

    imported = load_model_file(path).description["graph"]["nodes"]
    het = [node["op"] for node in imported if node["op"]["op"] == "conv2d" and "het" in node["op"]["kind"]]
    arrangements = [list(op["kind"]["het"]["arrangement"].items())[0] for op in het]
    parts = {"parts": 4}
    assert arrangements[:4] == [("shifted", parts), ("blocked", parts), ("shifted", parts), ("shifted", parts)]
    assert arrangements[4:] == [("shifted", {"parts": 3})], json.dumps(arrangements)

    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, None])
def test_decomposed_models_can_be_traced(trace):
    torch.manual_seed(7)
    net, x = Classifier().eval(), torch.randn(2, 3, 16, 16)
    plain = decompose(net)
    traced = torch.jit.trace(plain, x) if trace is None else trace(plain)
    torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-5)


class Pooled(Classifier):
    """With the pooling of torchvision's networks, of which exporters make the most when strides are unusual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(16))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, x):
        x = torch.relu(self.norm(self.shifted(torch.relu(self.stem(x)))))
        return self.head(torch.flatten(self.pool(self.uneven(self.blocked(x))), 1))


@needs_onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keep_batch_norm", [False, True])
def test_onnx_files_of_either_memory_format(tmp_path, memory_format, keep_batch_norm):
    torch.manual_seed(9)
    net = Pooled()
    net.blocked = HetConv2d(16, 32, 3, padding=1, stride=2, arrangement="blocked")
    net(torch.randn(4, 3, 16, 16))
    net = net.eval().to(memory_format=memory_format)
    path = tmp_path / "model.onnx"
    x = torch.randn(2, 3, 16, 16).contiguous(memory_format=memory_format)
    export_onnx(net, x, path, keep_batch_norm=keep_batch_norm)
    assert net.shifted.center.is_contiguous() and isinstance(net.shifted, HetConv2d)
    again = load_model_file(path).eval()
    torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-5)
    ops = [node["op"]["op"] for node in again.description["graph"]["nodes"]]
    assert ops.count("batch_norm") == 1 + keep_batch_norm
    assert sum(isinstance(module, HetConv2d) for module in again.modules()) == 3


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_exporter_writes_converted_models(tmp_path):
    net, x = Pooled().eval(), torch.randn(2, 3, 16, 16)
    # Where classes differ in size, weights would be put together in the file.
    net.uneven = HetConv2d(32, 20, 5, padding=2)
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x,), path, dynamo=True, external_data=False, verbose=False)
    again = load_model_file(path).eval()
    torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, HetConv2d) for module in again.modules()) == 3


def test_other_modules_are_no_model_files(tmp_path):
    with pytest.raises(TypeError, match="export_onnx"):
        save_model_file(Classifier(), tmp_path / "model.safetensors")


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_onnx_files_say_what_a_network_says(tmp_path):
    import onnx

    model_file, path, x = tmp_path / "model.safetensors", tmp_path / "model.onnx", torch.randn(2, 3, 32, 32)
    names, stated = [f"class {i}" for i in range(10)], ([0.5, 0.25, 0.125], [0.25, 0.5, 1.0])
    save_model_file(network("small-cifar_p4"), model_file, class_names=names, normalisation=stated)
    net = load_model_file(model_file).eval()
    for said, exported in [(["classes", "normalisation"], net), ([], network("small-cifar_p4")), ([], Classifier())]:
        export_onnx(exported, x, path)
        onnx.checker.check_model(path)
        keys = sorted(entry.key for entry in onnx.load(path).metadata_props if entry.key.startswith("hetconv."))
        assert keys == [f"hetconv.{key}" for key in said]
        runtime, again = hetconv.Runtime(path, exact=True), load_model_file(path)
        assert runtime.class_names == again.description["classes"] == (names if said else [])
        assert runtime.normalisation == again.normalisation == (stated if said else None)
        with torch.no_grad():
            expected = exported.eval()(x)
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(torch.tensor(runtime.run(x)), expected, rtol=1e-4, atol=atol)


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_networks_from_onnx_files(tmp_path):
    net = network("resnet20_p4", seed=6).eval()
    path = tmp_path / "model.onnx"
    export_onnx(net, torch.randn(2, 3, 32, 32), path)
    x = torch.randn(3, 3, 32, 32)
    again = load_model_file(path).eval()
    assert sum(isinstance(module, HetConv2d) for module in again.modules()) == 18
    torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-4)
