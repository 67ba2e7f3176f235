"""The layer in PyTorch."""

import copy
import io

import pytest
from conftest import golden_files, golden_operator, read_safetensors

torch = pytest.importorskip("torch", reason="needs PyTorch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from hetconv.torch import HetConv2d, decompose  # noqa: E402
from hetconv.torch.ops import conv2d, conv2d_grad_input, conv2d_grad_weight  # noqa: E402

FORMS = ["kernels", "grouped", "dense"]
FORMATS = [torch.contiguous_format, torch.channels_last]
LAYERS = [
    dict(in_channels=16, out_channels=32, kernel_size=3, padding=1),
    dict(in_channels=8, out_channels=12, kernel_size=(3, 5), padding=(1, 2), stride=(2, 1), parts=2),
    dict(in_channels=7, out_channels=9, kernel_size=3, parts=3, dilation=2, padding=2, bias=False),
    dict(in_channels=16, out_channels=16, kernel_size=3, parts=4, arrangement="blocked"),
    dict(in_channels=6, out_channels=4, kernel_size=3, padding=3, arrangement=([0, 0, 1, 1, 2, 2], [2, 2, 0, 1])),
    dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, parts=1),
    dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, padding_mode="reflect"),
    dict(in_channels=8, out_channels=8, kernel_size=5, padding="same"),
]


def is_spatial(layer, filter, channel):
    """The definition."""
    parts, channels, filters = layer.parts, layer.in_channels, layer.out_channels
    if layer.arrangement == "shifted":
        return (channel - filter) % parts == 0
    return channel * parts // channels == filter * parts // filters


def forms(layer):
    """Those a layer can be computed in."""
    return [form for form in FORMS if form != "grouped" or layer._groups is not None]


def tensor(entry):
    shape, values = entry
    return torch.tensor(values).view(shape)


def test_layers_built_without_memory():
    for kwargs in (dict(parts=4), dict(parts=3, arrangement=([0, 1, 2, 1] * 2, [2, 0, 1, 1] * 2))):
        layer = HetConv2d(8, 8, 3, padding=1, **kwargs)
        with torch.device("meta"):
            empty, assigned = (HetConv2d(8, 8, 3, padding=1, **kwargs) for _ in range(2))
        assert empty.center.is_meta and empty._spatial.is_meta
        empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
        assigned.load_state_dict(layer.state_dict(), assign=True)
        x = torch.randn(2, 8, 5, 5)
        for other in (empty, assigned):
            assert torch.equal(other.dense_weight(), layer.dense_weight())
            for form in forms(layer):
                layer.form = other.form = form
                assert torch.equal(other(x), layer(x))
        empty.reset_parameters()
        assert not empty.ring[empty.spare_slots()].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", golden_files(), ids=lambda file: file.stem)
def test_golden_results_and_gradients(file, form):
    metadata, tensors = read_safetensors(file)
    golden = {name: tensor(entry) for name, entry in tensors.items()}
    layer = HetConv2d.from_operator(golden_operator(metadata))
    layer.exact = True
    if form not in forms(layer):
        # Only a pattern whose classes differ in size has no grouped form.
        assert layer.in_channels % layer.parts or layer.out_channels % layer.parts
        return
    layer.form = form
    layer.load_state_dict({"weight": golden["weight"], "bias": golden["bias"]})
    assert (layer.dense_weight() == golden["weight"]).all()
    expected_ring = copy.deepcopy(layer)
    expected_ring.set_dense_weight(golden["dweight"])
    for memory_format in FORMATS:
        layer.zero_grad()
        x = golden["x"].clone(memory_format=memory_format).requires_grad_()
        y = layer(x)
        y.backward(golden["dy"])
        for found, expected in [
            (y, golden["y"]),
            (x.grad, golden["dx"]),
            (layer.center.grad, expected_ring.center),
            (layer.ring.grad, expected_ring.ring),
            (layer.bias.grad, golden["dbias"]),
        ]:
            torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_all_forms_are_the_masked_convolution(arguments):
    torch.manual_seed(1)
    layer = HetConv2d(**arguments)
    x = torch.randn(3, layer.in_channels, 9, 11)
    plain = {name: value for name, value in arguments.items() if name not in ("parts", "arrangement")}
    reference = nn.Conv2d(**plain).double()
    with torch.no_grad():
        reference.weight.copy_(layer.dense_weight())
        if layer.bias is not None:
            reference.bias.copy_(layer.bias)
    if not isinstance(arguments.get("arrangement"), tuple):
        for f in range(layer.out_channels):
            for c in range(layer.in_channels):
                kernel = layer.dense_weight()[f, c].clone()
                kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 0
                assert bool(kernel.any()) == is_spatial(layer, f, c)
    expected = reference(x.double())
    for form in forms(layer):
        layer.form = form
        for memory_format in FORMATS:
            y = layer(x.contiguous(memory_format=memory_format))
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
            assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(layer(x[0]).double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decompose(nn.Sequential(layer))(x).double(), expected, rtol=1e-5, atol=1e-5)
    layer.form = "auto"
    torch.testing.assert_close(layer.double()(x.double()), expected)
    empty = layer.float()(x[:0])
    assert empty.shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("parts", [4, 1])
def test_winograd_differs_by_rounding_alone(parts):
    torch.manual_seed(2)
    layer = HetConv2d(64, 64, 3, padding=1, parts=parts, arrangement="blocked")
    x, dy = torch.randn(4, 64, 16, 16).contiguous(memory_format=torch.channels_last), torch.randn(4, 64, 16, 16)
    results = []
    for exact in (True, False):
        layer.exact = exact
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad, layer.center.grad, layer.ring.grad))
    for number, (direct, transformed) in enumerate(zip(*results)):
        # The gradient by the weights of narrow classes is faster directly.
        assert (parts > 1 and number >= 2) or not torch.equal(direct, transformed)
        torch.testing.assert_close(transformed, direct, rtol=4e-5, atol=4e-5 * direct.abs().max().item())


@pytest.mark.parametrize("form", ["grouped", "dense"])
def test_gradcheck(form):
    layer = HetConv2d(4, 6, 3, padding=1, parts=2).double()
    layer.form = form
    x = torch.randn(2, 4, 5, 4, dtype=torch.double, requires_grad=True)
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format):
    layer = HetConv2d(8, 12, 3, padding=1, stride=2)
    x = torch.randn(2, 8, 7, 6).clone(memory_format=memory_format).requires_grad_()
    weights = (layer.center, layer.ring)
    torch.library.opcheck(conv2d, (x, *weights, layer.bias, layer.layer, False))
    torch.library.opcheck(conv2d, (x.detach(), *weights, None, layer.layer, True))
    dy = torch.randn(2, 12, 4, 3).clone(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(conv2d_grad_input, (dy, *weights, 7, 6, layer.layer, False))
    torch.library.opcheck(conv2d_grad_weight, (x, dy, layer.layer, False))


def test_gradients_of_gradients():
    torch.manual_seed(3)
    layer = HetConv2d(4, 8, 3, padding=1, parts=2)
    layer.exact = True
    x, dy, ddx = torch.randn(2, 4, 6, 5), torch.randn(2, 8, 6, 5), torch.randn(2, 4, 6, 5)
    results = []
    for form in ("kernels", "dense"):
        layer.form = form
        x1, dy1 = x.clone().requires_grad_(), dy.clone().requires_grad_()
        inputs = [x1, layer.center, layer.ring]
        grads = torch.autograd.grad(layer(x1), inputs, dy1, create_graph=True)
        scalar = (grads[0] * ddx).sum() + grads[1].square().sum() + grads[2].square().sum()
        results.append(torch.autograd.grad(scalar, [*inputs, dy1]))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", LAYERS)
def test_flops_are_two_for_each_product(arguments):
    layer = HetConv2d(**arguments)
    x = torch.randn(2, layer.in_channels, 9, 8, requires_grad=True)
    taps = layer.ring.shape[2]
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    products = layer.center.numel() + taps * int(layer._spatial.sum())
    forward = 2 * y.shape[0] * y.shape[2] * y.shape[3] * products
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("arguments", LAYERS)
def test_transforms_of_functions(arguments):
    torch.manual_seed(8)
    layer = HetConv2d(**arguments)
    x, tangent = torch.randn(2, 2, layer.in_channels, 9, 8)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    results = {}
    for form in ("auto", "dense"):
        layer.form = form
        grads = torch.func.grad(loss)(weights, x)
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        for name, grad in grads.items():
            torch.testing.assert_close(each[name].sum(0), grad, rtol=1e-3, atol=1e-3)
        results[form] = [*grads.values(), *torch.func.jvp(layer, (x,), (tangent,))]
    for found, expected in zip(results["auto"], results["dense"]):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_compile_without_graph_breaks(memory_format):
    torch.manual_seed(4)
    model = nn.Sequential(
        HetConv2d(3, 16, 3, padding=1, parts=3), nn.BatchNorm2d(16), nn.ReLU(), HetConv2d(16, 8, 3, stride=2)
    ).to(memory_format=memory_format)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=memory_format)
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected)
    for output in (expected, found):
        output.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_other_types_and_autocast_take_pytorchs_operators(monkeypatch):
    from hetconv.torch import ops

    layer, x = HetConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 6, 6)
    expected = layer(x)
    calls = []
    monkeypatch.setattr(ops, "conv2d", lambda *arguments: calls.append(arguments) or expected)
    assert layer(x) is expected and len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and len(calls) == 1
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    for dtype, tolerance in [(torch.bfloat16, 0.05), (torch.float64, 1e-5)]:
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    assert len(calls) == 1


def test_channels_last_is_read_in_place(monkeypatch):
    from hetconv.torch import ops

    layer = HetConv2d(8, 8, 3, padding=1, arrangement="blocked")
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    layer(x)
    native, seen = ops.native(layer.layer), []

    class Spy:
        def forward(self, images, addresses, *rest):
            seen.append(addresses[0])
            native.forward(images, addresses, *rest)

    monkeypatch.setattr(ops, "native", lambda _: Spy())
    layer(x)
    assert seen == [x.data_ptr()]


def test_arguments_that_contradict_each_other_are_errors():
    for arguments, message in [
        (dict(kernel_size=2), "odd"),
        (dict(kernel_size=1), "1×1"),
        (dict(kernel_size=3, groups=2), "groups"),
        (dict(kernel_size=3, parts=0), "P = 0"),
        (dict(kernel_size=3, parts=9), "P = 9"),
        (dict(kernel_size=3, parts=3, arrangement="blocked"), "divide"),
        (dict(kernel_size=3, arrangement="diagonal"), "diagonal"),
        (dict(kernel_size=3, padding_mode="mirror"), "mirror"),
        (dict(kernel_size=3, arrangement="assigned"), "pair of lists"),
        (dict(kernel_size=3, arrangement=([0], [0])), "classes"),
        (dict(kernel_size=3, arrangement=([0] * 8, [-1] * 8)), "from 0 on"),
        (dict(kernel_size=3, padding=(1, -1)), "negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            HetConv2d(8, 8, **arguments)
    with pytest.raises(TypeError, match="integer"):
        HetConv2d(8, 8, 3, parts=2.5)
    layer = HetConv2d(8, 8, 3)
    for wrong in (torch.randn(1, 4, 8, 8), torch.randn(1, 8, 2, 8), torch.randn(8, 8)):
        with pytest.raises(ValueError, match="input"):
            layer(wrong)
    layer.form = "kernels"
    with pytest.raises(TypeError, match="float64"):
        layer(torch.randn(1, 8, 8, 8, dtype=torch.double))


def test_state_dicts_in_three_spellings():
    torch.manual_seed(5)
    layer = HetConv2d(8, 12, 3, padding=1, arrangement="blocked")
    x = torch.randn(2, 8, 5, 5)
    file = io.BytesIO()
    torch.save(nn.Sequential(layer).state_dict(), file)
    assert set(layer.state_dict()) == {"center", "ring", "bias"}
    file.seek(0)
    again = nn.Sequential(HetConv2d(8, 12, 3, padding=1, arrangement="blocked"))
    again.load_state_dict(torch.load(file))
    assert torch.equal(again(x), layer(x))

    dense = {"0.weight": layer.dense_weight().detach(), "0.bias": layer.bias.detach()}
    again = nn.Sequential(HetConv2d(8, 12, 3, padding=1, arrangement="blocked"))
    again.load_state_dict(dense)
    assert torch.equal(again(x), layer(x))
    dense["0.weight"] = torch.randn(12, 8, 3, 3)
    with pytest.raises(RuntimeError, match="has taps where the layer has none"):
        again.load_state_dict(dense)

    class Authors(nn.Module):
        """What their code has in place of a convolution."""

        def __init__(self):
            super().__init__()
            self.gwc = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
            self.pwc = nn.Conv2d(8, 12, 1, bias=True)

        def forward(self, x):
            return self.gwc(x) + self.pwc(x)

    authors = nn.Sequential(Authors())
    again.load_state_dict(authors.state_dict())
    torch.testing.assert_close(again(x), authors(x))
    shifted = nn.Sequential(HetConv2d(8, 12, 3, padding=1))
    with pytest.raises(RuntimeError, match="arrangement='blocked'"):
        shifted.load_state_dict(authors.state_dict())
    assert set(authors.state_dict()) == {"0.gwc.weight", "0.pwc.weight", "0.pwc.bias"}


def test_state_dicts_in_other_spellings_draw_no_random_numbers():
    layer = HetConv2d(8, 12, 3, padding=1, arrangement="blocked")
    spatial, pointwise, bias = layer.grouped_weights()
    own = layer.state_dict()
    authors = {"gwc.weight": spatial, "gwc.bias": bias / 2, "pwc.weight": pointwise, "pwc.bias": bias / 2}
    for state in (own, {"weight": layer.dense_weight(), "bias": layer.bias}, authors):
        again = HetConv2d(8, 12, 3, padding=1, arrangement="blocked")
        with torch.device("meta"):
            assigned = HetConv2d(8, 12, 3, padding=1, arrangement="blocked")
        torch.manual_seed(9)
        again.load_state_dict(state)
        assigned.load_state_dict(state, assign=True)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(9)))
        for other in (again, assigned):
            assert all(torch.equal(own[name], tensor) for name, tensor in other.state_dict().items())
            assert other.center.is_contiguous() and other.ring.is_contiguous()


def test_tensors_of_other_shapes_are_named():
    def state(kernel=(3, 3), groups=4, filters=12, **more):
        grouped, pointwise = torch.randn(filters, 8 // groups, *kernel), torch.randn(filters, 8, 1, 1)
        return {"0.gwc.weight": grouped, "0.pwc.weight": pointwise, "0.bias": torch.zeros(12)} | more

    net = nn.Sequential(HetConv2d(8, 12, 3, padding=1, arrangement="blocked"))
    before = copy.deepcopy(net.state_dict())
    net.load_state_dict(state())
    net.load_state_dict(state(groups=1) | {"0.gwc.weight": torch.zeros(12, 8, 3, 3)})
    net.load_state_dict(before)
    for wrong, message in [
        (state(kernel=(5, 5)), r"0: a gwc.weight of shape \(12, 2, 5, 5\); the layer's is \(12, 2, 3, 3\)"),
        (state(kernel=(3, 1)), "gwc.weight of shape"),
        (state(filters=10), "gwc.weight of shape"),
        (state() | {"0.gwc.weight": torch.zeros(12, 3, 3, 3)}, r"the layer's is \(12, 2, 3, 3\)"),
        (state() | {"0.gwc.weight": torch.zeros(12, 0, 3, 3)}, "gwc.weight of shape"),
        (state() | {"0.gwc.weight": torch.zeros(12)}, "gwc.weight of shape"),
        (state() | {"0.pwc.weight": torch.zeros(1, 8, 1, 1)}, r"0: a pwc.weight of shape \(1, 8, 1, 1\)"),
        (state() | {"0.pwc.bias": torch.zeros(5)}, r"0: a pwc.bias of shape \(5,\); the layer's is \(12,\)"),
        ({"0.gwc.weight": torch.zeros(12, 2, 3, 3)}, "0: gwc.weight and pwc.weight belong together"),
        ({"0.weight": torch.zeros(12, 8, 5, 5)}, "0: a dense weight of shape"),
        ({"0.weight": torch.zeros(12)}, "0: a dense weight of shape"),
    ]:
        with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict(.|\n)*" + message):
            net.load_state_dict(wrong)
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_fresh_weights_have_one_fan_in_and_spare_slots_stay_empty():
    torch.manual_seed(6)
    layer = HetConv2d(13, 17, 3, padding=1, parts=5)
    spare = layer.spare_slots()
    assert spare.any() and not layer.ring[spare].any()
    bound = layer.fan_in().float().rsqrt()
    assert layer.fan_in().tolist() == [13 + 8 * (3 if f % 5 < 3 else 2) for f in range(17)]
    assert (layer.center.abs().amax(1) <= bound).all() and (layer.center.abs().amax(1) > bound / 2).all()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = layer.ring.detach().clone()
    for _ in range(2):
        layer(torch.randn(2, 13, 6, 6)).square().sum().backward()
        optimizer.step()
    assert not layer.ring[spare].any() and not torch.equal(before, layer.ring)


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(7)
    layer = HetConv2d(32, 48, 3, padding=1, parts=8)
    # As many images as are worked on a few at a time.
    x = torch.randn(32, 32, 20, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            layer.zero_grad()
            y = layer(x)
            y.square().sum().backward()
            results.append((y.detach(), layer.ring.grad, layer.center.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        # The gradient of the sum is PyTorch's own, elementwise.
        assert all(map(torch.equal, results[0], other))


def test_relu_in_place_behind_a_layer():
    layer = HetConv2d(4, 4, 3, padding=1, parts=2)
    x = torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    y = F.relu(layer(x), inplace=True)
    assert torch.equal(y, layer(x).relu())
    y.sum().backward()
    assert layer.center.grad.isfinite().all()


def test_a_forked_process_has_threads_of_its_own():
    import multiprocessing

    layer, x = HetConv2d(8, 8, 3, padding=1), torch.randn(2, 8, 16, 16)
    expected = layer(x)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        found = pool.apply_async(_forked, (layer.state_dict(), x)).get(timeout=60)
    assert torch.equal(torch.tensor(found), expected)


def _forked(state, x):
    # PyTorch's own OpenMP threads do not survive a fork either; DataLoader's workers have one thread, too.
    torch.set_num_threads(1)
    layer = HetConv2d(8, 8, 3, padding=1)
    layer.load_state_dict(state)
    with torch.no_grad():
        return layer(x).tolist()
