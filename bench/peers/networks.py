"""Checks networks that others wrote: torchvision's, with random weights, through ONNX and back.

    python3 bench/peers/networks.py                 # all of them, a few minutes
    python3 bench/peers/networks.py --networks resnet18,vgg11_bn --times

Each network is exported by PyTorch. `hetconv run` has to agree with ONNX Runtime on it, or to name an operator that it
lacks. Then `hetconv convert -p 4` has to change every eligible convolution (no groups, an odd square kernel of more than
one tap, not the first), ONNX Runtime has to run the result, and `hetconv run` has to agree again. With --times both run
the converted network in turn, and so they do with the original one.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import install
import run

NETWORKS = [
    *["resnet18", "resnet50", "vgg11_bn", "vgg16", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "googlenet"],
    *["densenet121", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf"],
]
# How much of the largest output two runtimes may differ by.
TOLERANCE = 1e-4
# How many networks may have an operator that this project lacks.
MAY_LACK = 2


def make(name, folder):
    """The network as an ONNX file with moderate activations, and an image."""
    import torch
    import torchvision

    torch.manual_seed(1)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    network = getattr(torchvision.models, name)(weights=None, **options)
    image = torch.randn(1, 3, 224, 224)
    # Fresh batch-norms are all the same, and would hide a channel that is taken for another.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 224, 224))
    file = Path(folder, f"{name}.onnx")
    network.eval()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(network, (image,), dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    program.save(str(file))
    return file, image.numpy()


def onnxruntime_session(file, threads=0):
    """A session, and its outputs for an image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def hetconv_run(hetconv, file, image, folder):
    """What `hetconv run` computes, or what it says against it."""
    import numpy

    x, y = Path(folder, "x.npy"), Path(folder, "y.npy")
    numpy.save(x, image)
    done = subprocess.run([hetconv, "run", file, "--input", x, "--output", y], capture_output=True, text=True)
    return (numpy.load(y), None) if done.returncode == 0 else (None, done.stderr.strip())


def difference(found, expected):
    """The largest difference, relative to the largest output."""
    return float(abs(found - expected).max() / abs(expected).max())


def eligible(file):
    """The names of the convolutions that are to be converted, and of those that are not."""
    import onnx

    graph = onnx.load(file).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    names, others = [], []
    first = True
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        _, _, height, width = shapes[node.input[1]]
        wanted = not first and groups == 1 and height == width and height % 2 == 1 and height > 1
        (names if wanted else others).append(node.name)
        first = False
    return names, others


def check(name, hetconv, folder):
    """Checks one network; returns a row of results."""
    import onnx

    file, image = make(name, folder)
    onnx.checker.check_model(str(file))
    row = {"network": name}
    expected = onnxruntime_session(file)(image)[0]
    found, lacks = hetconv_run(hetconv, file, image, folder)
    if lacks:
        row["lacks"] = lacks
    else:
        row["difference"] = difference(found, expected)
    names, others = eligible(file)
    converted = Path(folder, "converted", f"{name}.onnx")
    converted.parent.mkdir(exist_ok=True)
    command = [hetconv, "convert", file, "-p", "4", "-o", converted, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not names:
        row["converted"] = "none is eligible"
        if done.returncode != 1 or converted.exists():
            raise SystemExit(f"{name}: nothing could be converted, but `hetconv convert` says {done.returncode}")
        return row
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr}")
    layers = json.loads(done.stdout)["layers"]
    changed = {layer["name"] for layer in layers if layer.get("parts")}
    if changed != set(names):
        raise SystemExit(f"{name}: converted {sorted(changed ^ set(names))} otherwise than expected")
    onnx.checker.check_model(str(converted))
    row["converted"] = f"{len(names)} of {len(names) + len(others)}"
    expected = onnxruntime_session(converted)(image)[0]
    if not lacks:
        found, lacks = hetconv_run(hetconv, converted, image, folder)
        if lacks:
            raise SystemExit(f"{name}, converted: {lacks}")
        row["difference_converted"] = difference(found, expected)
    row["files"] = (file, converted, image)
    return row


def ours(hetconv, file, threads):
    """Milliseconds of one image in our runtime."""
    command = [hetconv, "benchmark", "--model", file, "--batch", "1", "--threads", threads, "--format", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["median_ms"]


def theirs(file, image, threads, seconds=1.5):
    """Milliseconds of one image in ONNX Runtime."""
    call = onnxruntime_session(file, threads)
    for _ in range(3):
        call(image)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        start = time.perf_counter()
        call(image)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hetconv", help="the binary [default: a release build of this repository]")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="which ones [default: all]")
    parser.add_argument("--times", action="store_true", help="also measure both runtimes, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for --times [default: all cores]")
    parser.add_argument("--keep", metavar="FOLDER", help="make the files there, and keep them")
    options = parser.parse_args()
    hetconv = options.hetconv or run.build()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(exist_ok=True)
        for name in options.networks.split(","):
            row = check(name, hetconv, folder)
            rows.append(row)
            print({key: value for key, value in row.items() if key != "files"}, flush=True)
        if options.times:
            for row in rows:
                if "files" not in row or "lacks" in row:
                    continue
                file, converted, image = row["files"]
                for title, which in [("converted", converted), ("original", file)]:
                    us, them = ours(hetconv, which, options.threads), theirs(which, image, options.threads)
                    print(
                        f"{row['network']} {title}: {us:.2f} ms, ONNX Runtime {them:.2f} ms, ratio {them / us:.2f}",
                        flush=True,
                    )
    wrong = [
        row["network"]
        for row in rows
        # Written so that what is no number is wrong.
        if not all(row.get(key, 0.0) <= TOLERANCE for key in ("difference", "difference_converted"))
        or ("lacks" in row and not re.search("not supported", row["lacks"]))
    ]
    lacking = [row["network"] for row in rows if "lacks" in row]
    if wrong or len(lacking) > MAY_LACK:
        raise SystemExit(f"wrong: {wrong}, lacking operators: {lacking}")
    print(f"{len(rows)} networks agree within {TOLERANCE}" + (f", but for {lacking}" if lacking else ""))


if __name__ == "__main__":
    if sys.prefix != str(install.VENV):
        os.execv(install.python(), [install.python(), *sys.argv])
    main()
