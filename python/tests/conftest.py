"""What all tests share: golden vectors and an obviously right convolution."""

import array
import json
import math
import struct
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
# Its images have 4 channels and no size; how they are normalised it does not say.
OPEN_SIZE = GOLDEN.parents[1] / "crates/hetconv-onnx/tests/fixtures/open_size.onnx"


def read_safetensors(path):
    """Metadata and tensors of a safetensors file: shape and a flat array of float32."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = entry["shape"], array.array("f", data[begin:end])
    return metadata, tensors


def golden_files():
    """One file for every golden layer."""
    files = sorted(GOLDEN.glob("*.safetensors"))
    assert len(files) == 25, f"golden vectors in {GOLDEN}"
    return files


def golden_operator(metadata):
    """The layer of a golden file as an operator of a model file."""

    def number(key):
        return int(metadata[key])

    pattern = {
        "in_channels": number("in_channels"),
        "out_channels": number("out_channels"),
        "arrangement": {metadata["arrangement"]: {"parts": number("parts")}},
    }
    return {
        "op": "conv2d",
        "in_channels": number("in_channels"),
        "out_channels": number("out_channels"),
        "geometry": {
            "kernel": [number("kernel")] * 2,
            "stride": [number("stride")] * 2,
            "padding": [number("padding")] * 4,
            "dilation": [number("dilation")] * 2,
        },
        "kind": {"het": pattern},
        "bias": True,
    }


def canonical(operator, weight):
    """`center` and `ring`, flat, of a dense weight `[N, M, K, K]`, flat, by the definition of the shifted and blocked
    arrangements."""
    filters, channels = operator["out_channels"], operator["in_channels"]
    taps = math.prod(operator["geometry"]["kernel"])
    ((kind, fields),) = operator["kind"]["het"]["arrangement"].items()
    parts = fields["parts"]
    spatial = [
        [
            c
            for c in range(channels)
            if ((c - f) % parts == 0 if kind == "shifted" else c * parts // channels == f * parts // filters)
        ]
        for f in range(filters)
    ]
    slots = max(map(len, spatial))
    center, ring = array.array("f"), array.array("f", bytes(4 * filters * slots * (taps - 1)))
    for f in range(filters):
        kernels = [weight[(f * channels + c) * taps : (f * channels + c + 1) * taps] for c in range(channels)]
        center.extend(kernel[taps // 2] for kernel in kernels)
        for slot, c in enumerate(spatial[f]):
            around = [*kernels[c][: taps // 2], *kernels[c][taps // 2 + 1 :]]
            start = (f * slots + slot) * (taps - 1)
            ring[start : start + taps - 1] = array.array("f", around)
    return {"center": ([filters, channels], center), "ring": ([filters, slots, taps - 1], ring)}


def write_network(path, name, seed):
    """A network of the paper with fresh weights as a model file, for pixels from 0 to 1 as they are."""
    from hetconv import _native

    description, tensors = _native.build_model(name, 10, seed, None)
    stated = {"normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    _native.write_model(path, json.dumps(json.loads(description) | stated), tensors)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A small network of the paper as a model file."""
    path = tmp_path_factory.mktemp("models") / "small-cifar_p4.safetensors"
    write_network(path, "small-cifar_p4", 7)
    return path
