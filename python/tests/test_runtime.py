"""The package without PyTorch: the runtime and model files."""

import array
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
from conftest import OPEN_SIZE, canonical, golden_files, golden_operator, read_safetensors, write_network

import hetconv
from hetconv import _native

HAS_NUMPY = importlib.util.find_spec("numpy") is not None


def images(batch, shape=(3, 32, 32)):
    """Different numbers, reproducibly."""
    count = batch * shape[0] * shape[1] * shape[2]
    values = array.array("f", ((i * 7919 % 1009) / 1009 - 0.5 for i in range(count)))
    return memoryview(values).cast("B").cast("f", (batch, *shape))


@pytest.mark.parametrize("file", golden_files(), ids=lambda file: file.stem)
def test_a_layer_alone_gives_the_golden_results(file, tmp_path):
    metadata, tensors = read_safetensors(file)
    operator = golden_operator(metadata)
    shape, x = tensors["x"]
    weights = canonical(operator, tensors["weight"][1]) | {"bias": tensors["bias"]}
    nodes = [
        {"name": "x", "op": {"op": "input", "shape": shape[1:]}},
        {"name": "layer", "op": operator, "inputs": [0]},
    ]
    channels = operator["in_channels"]
    description = {
        "graph": {"name": file.stem, "nodes": nodes, "outputs": [1]},
        "classes": [],
        "normalisation": {"mean": [0.0] * channels, "std": [1.0] * channels},
    }
    path = tmp_path / "layer.safetensors"
    stored = {f"layer.{name}": (list(extent), values.tobytes()) for name, (extent, values) in weights.items()}
    _native.write_model(path, json.dumps(description), stored)

    result = hetconv.Runtime(path, exact=True).run(memoryview(x).cast("B").cast("f", shape))
    expected_shape, expected = tensors["y"]
    assert list(result.shape) == expected_shape
    found = array.array("f", bytes(memoryview(result).cast("B")))
    worst = max(abs(a - b) / (1 + abs(b)) for a, b in zip(found, expected, strict=True))
    assert worst < 1e-5


def test_what_a_runtime_says_of_itself(model_file):
    runtime = hetconv.Runtime(model_file)
    assert runtime.name == "small-cifar_p4"
    assert runtime.input_names == ["input"] and runtime.input_shapes == [(3, 32, 32)]
    assert runtime.output_shapes == [(10,)] and runtime.output_names == ["classifier"]
    assert runtime.class_names == []
    assert runtime.normalisation == ([0.0] * 3, [1.0] * 3)


def test_threads_and_repetition_change_no_bit(model_file):
    runtime, alone = hetconv.Runtime(model_file), hetconv.Runtime(model_file, threads=1)
    batch = images(5)
    first = bytes(memoryview(runtime.run(batch)))
    assert bytes(memoryview(runtime.run(batch))) == first
    assert bytes(memoryview(alone.run(batch))) == first
    two = memoryview(batch.cast("B")[: 2 * 3 * 32 * 32 * 4]).cast("f", (2, 3, 32, 32))
    # Another number of images may be computed in other tiles, and differs by rounding.
    found = array.array("f", bytes(memoryview(runtime.run(two)).cast("B")))
    assert list(found) == pytest.approx(list(array.array("f", first[: 2 * 10 * 4])), rel=1e-4, abs=1e-5)
    assert bytes(memoryview(runtime.run({"input": batch}))) == first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_makes_runtimes_of_its_own(model_file):
    expected = bytes(memoryview(hetconv.Runtime(model_file).run(images(2))))
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply_async(_forked, (model_file,)).get(timeout=60) == expected


def _forked(model_file):
    return bytes(memoryview(hetconv.Runtime(model_file).run(images(2))))


def test_an_open_image_size_is_said():
    for size in [(6, 5), (9, 11)]:
        runtime = hetconv.Runtime(OPEN_SIZE, image_size=size)
        assert runtime.input_shapes == [(4, *size)]
        assert runtime.run(images(2, (4, *size))).shape == (2, 3)
    with pytest.raises(hetconv.Error, match="height and width are open"):
        hetconv.Runtime(OPEN_SIZE)


def test_a_normalisation_is_stated_or_none(tmp_path):
    assert hetconv.Runtime(OPEN_SIZE, image_size=(6, 5)).normalisation is None
    path = tmp_path / "model.safetensors"
    for description, tensors in [
        _native.read_model(OPEN_SIZE, (6, 5)),
        _native.build_model("small-cifar_p4", 10, 7, None),
    ]:
        with pytest.raises(ValueError, match="give `normalisation`"):
            _native.write_model(path, description, tensors)
        assert not path.exists()


def test_an_image_size_is_never_ignored(model_file):
    assert hetconv.Runtime(model_file, image_size=(32, 32)).input_shapes == [(3, 32, 32)]
    with pytest.raises(hetconv.Error, match="32×32, not 64×48"):
        hetconv.Runtime(model_file, image_size=(64, 48))


def test_what_does_not_fit_is_an_error(model_file, tmp_path):
    runtime = hetconv.Runtime(model_file)
    with pytest.raises(ValueError, match=r"takes \(images, 3, 32, 32\)"):
        runtime.run(images(2, (3, 16, 32)))
    with pytest.raises(ValueError, match="inputs are"):
        runtime.run({"other": images(1)})
    with pytest.raises(ValueError, match="at least 1"):
        hetconv.Runtime(model_file, batch=0)
    with pytest.raises(FileNotFoundError, match="absent"):
        hetconv.Runtime(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="absent"):
        hetconv.Runtime(tmp_path / "absent.onnx")
    for name, content in [("short.safetensors", model_file.read_bytes()[:5000]), ("short.onnx", b"\x08\x07\xff")]:
        broken = tmp_path / name
        broken.write_bytes(content)
        with pytest.raises(hetconv.Error, match="short"):
            hetconv.Runtime(broken)
    with pytest.raises(hetconv.Error, match="did you mean"):
        _native.build_model("vgg17-cifar", None, 0, None)


def test_layers_that_contradict_themselves_are_errors():
    metadata, _ = read_safetensors(golden_files()[0])
    good = golden_operator(metadata)
    _native.Layer(json.dumps(good))
    for part, wrong in [
        ({"kind": "standard"}, "not a HetConv layer"),
        ({"geometry": good["geometry"] | {"kernel": [2, 2]}}, "odd kernel"),
        ({"geometry": good["geometry"] | {"kernel": [1, 1]}}, "1×1"),
        ({"geometry": good["geometry"] | {"stride": [0, 1]}}, "stride"),
        ({"in_channels": 11}, "11 channels"),
    ]:
        with pytest.raises(hetconv.Error, match=wrong):
            _native.Layer(json.dumps(good | part))


def test_the_interpreter_goes_on_while_a_network_runs(tmp_path):
    path = tmp_path / "vgg.safetensors"
    write_network(path, "vgg16-cifar_p4", 0)
    runtime, batch = hetconv.Runtime(path, threads=1), images(32)
    started, finished = threading.Event(), []

    def run():
        started.set()
        runtime.run(batch)
        finished.append(True)

    interval = sys.getswitchinterval()
    # Nobody is asked to let go of the interpreter: who waits for it gets it only from whoever releases it.
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        started.wait()
        seen = list(finished)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert finished == [True] and seen == []


def test_threads_may_share_a_runtime(model_file):
    runtime, batches = hetconv.Runtime(model_file), [images(size) for size in (1, 2, 3, 4)]
    expected = [bytes(memoryview(runtime.run(batch))) for batch in batches]
    found = [None] * len(batches)

    def run(index):
        for _ in range(20):
            found[index] = bytes(memoryview(runtime.run(batches[index])))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == expected


def test_numpy_is_optional(model_file):
    script = """
import sys
sys.modules["numpy"] = sys.modules["torch"] = None
import array, hetconv
values = memoryview(array.array("f", [0.5] * 3072)).cast("B").cast("f", (1, 3, 32, 32))
result = hetconv.Runtime(sys.argv[1]).run(values)
assert isinstance(result, memoryview) and result.shape == (1, 10), result
try:
    import hetconv.torch
except ImportError as error:
    assert "hetconv[torch]" in str(error), error
else:
    raise SystemExit("imported without PyTorch")
"""
    subprocess.run([sys.executable, "-c", script, str(model_file)], check=True)


@pytest.mark.skipif(not HAS_NUMPY, reason="needs NumPy")
def test_arrays_of_any_kind_are_brought_to_float32(model_file):
    import numpy

    runtime = hetconv.Runtime(model_file)
    batch = numpy.asarray(images(3))
    expected = runtime.run(batch)
    assert isinstance(expected, numpy.ndarray) and expected.dtype == numpy.float32 and expected.shape == (3, 10)
    assert (runtime.run(batch.astype(numpy.float64)) == expected).all()
    strided = numpy.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    assert (runtime.run(strided) == expected).all()
    if importlib.util.find_spec("torch"):
        import torch

        half = torch.from_numpy(batch).bfloat16()
        assert (runtime.run(half) == runtime.run(half.float())).all()


def test_networks_are_listed():
    names = hetconv.network_names()
    assert "vgg16-cifar_p4" in names and len(names) == len(set(names)) > 50
