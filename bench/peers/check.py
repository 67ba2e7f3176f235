"""Checks that what the peers compute is what this project computes, so that their times can be compared.

    python3 bench/peers/check.py [--zoo [NAME ...] [--statistics IMAGES]] [--hetconv PATH]
    python3 bench/peers/check.py --top1 DATA MODEL [MODEL ...]

Layers: both forms of HetConv against the golden vectors (result and gradients). Networks: `hetconv predict` against the
exact network, and every engine on the exported file against the network it was exported from. With `--zoo`: `hetconv
run` on every network of the zoo against PyTorch and ONNX Runtime; every network is tried before the check fails. How
far PyTorch is from its own float64 is printed beside it, with batch-norms folded and without, and how far folded weights
alone are. With `--top1`: `hetconv eval` of trained models with Winograd's algorithm and without it, whose hits may differ
by five images.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import install
import run

NETWORKS = [
    *["small-cifar", "small-cifar_p4_se", "small-cifar_gwc4_pwc", "small-cifar_dwc_pwc"],
    *["resnet20_p4", "mobilenet-cifar_p32", "vgg16-cifar_pc", "resnet34_p8", "resnet50_p4"],
]
# Images whose statistics a fresh network is given.
SETTLING = 32


def close(what, found, expected, tolerance):
    """Prints the largest difference, relative to the largest number, and insists that it is small."""
    difference = float(abs(found - expected).max() / abs(expected).max())
    print(f"{what}: {difference:.1e}")
    if not difference < tolerance:
        raise SystemExit(f"{what}: differs by {difference:.1e}, more than {tolerance}")


def golden_layers():
    """Both forms of every golden layer: result, grad-input and grad-weight."""
    import graph
    from safetensors import safe_open

    files = sorted((run.ROOT / "tests" / "golden").glob("*.safetensors"))
    grouped = 0
    for file in files:
        with safe_open(file, "pt") as golden:
            layer = golden.metadata()
            tensors = {name: golden.get_tensor(name) for name in golden.keys()}
        pattern = {key: int(layer[key]) for key in ("in_channels", "out_channels")}
        pattern["arrangement"] = {layer["arrangement"]: {"parts": int(layer["parts"])}}
        pairs = {"kernel": 2, "stride": 2, "padding": 4, "dilation": 2}
        geometry = {key: [int(layer[key])] * count for key, count in pairs.items()}
        for form in ("dense", "grouped"):
            image = tensors["x"].clone().requires_grad_()
            try:
                module = graph.het_conv(pattern, geometry, tensors["weight"], tensors["bias"], form, gathers=True)
            except ValueError:
                continue
            grouped += form == "grouped"
            result = module(image)
            result.backward(tensors["dy"])
            close(f"{file.stem} {form}", result.detach(), tensors["y"], 1e-5)
            close(f"{file.stem} {form} grad-input", image.grad, tensors["dx"], 1e-5)
            if form == "dense":
                close(f"{file.stem} grad-weight", module.weight.grad, tensors["dweight"], 1e-5)
    if not files or grouped < len(files) // 2:
        raise SystemExit("golden vectors are missing, or the grouped form refuses most of them")


def networks(hetconv, folder):
    """The exact network, in both forms, against `hetconv predict`; every engine against the network it was given."""
    import graph
    import numpy
    import torch

    for name in NETWORKS:
        description, tensors = graph.read(run.fresh_model(name))
        file, image, pixels = settle(description, tensors, folder)
        predicted = json.loads(
            subprocess.check_output([hetconv, "predict", file, image, "--top", "1000", "--format", "json"])
        )
        expected = {int(entry["label"]): entry["probability"] for entry in predicted[0]["classes"]}
        expected = torch.tensor([expected[label] for label in range(len(expected))])
        folded = graph.fold_batch_norms(*graph.read(file))
        for form in ("grouped", "dense"):
            with torch.inference_mode():
                logits = graph.Network(*folded, form, gathers=True).eval()(pixels)
            close(f"{name} {form} against hetconv predict", logits.softmax(1)[0], expected, 1e-3)
            if name not in ("small-cifar", "small-cifar_p4_se", "resnet20_p4", "mobilenet-cifar_p32"):
                continue
            with torch.inference_mode():
                logits = graph.Network(*folded, form).eval()(pixels).numpy()
            onnx = str(run.export(file, form, 1))
            for engine in run.ONNX_ENGINES:
                call = importlib.import_module(f"engine_{engine}").load(onnx, 1, 1)
                call(numpy.zeros_like(pixels.numpy()))
                close(f"{name} {form} on {engine}", call(pixels.numpy()).reshape(logits.shape), logits, 1e-4)


def rounding(name, file, pixels, exact):
    """Prints how far PyTorch is from the same network in float64, and what the folding of batch-norms has to do with it."""
    import graph
    import torch

    with torch.inference_mode():
        folded = graph.Network(*graph.fold_batch_norms(*graph.read(file)), "dense").eval()
        found = {
            "folded": folded(pixels).numpy(),
            "folded weights in float64": folded.double()(pixels.double()).numpy(),
        }
        found["plain"] = graph.Network(*graph.read(file), "dense").eval()(pixels).numpy()
    for what, logits in found.items():
        close(f"{name}, PyTorch {what} from its own float64", logits, exact, float("inf"))


def zoo(hetconv, names, folder, statistics):
    """`hetconv run` on every network, exact and fast, against PyTorch on the same graph and ONNX Runtime on the export."""
    import graph
    import numpy
    import onnxruntime
    import torch

    faults = []
    source, result, onnx = (str(Path(folder, name)) for name in ("x.npy", "y.npy", "model.onnx"))
    for name in names or json.loads(subprocess.check_output([hetconv, "list", "--format", "json"])):
        model = run.fresh_model(name, Path(folder, "fresh"))
        file, _, pixels = settle(*graph.read(model), folder, statistics)
        model.unlink()
        numpy.save(source, pixels.numpy())
        with torch.inference_mode():
            network = graph.Network(*graph.read(file), "dense").eval()
            expected = {"PyTorch": network(pixels).numpy()}
            expected["PyTorch in float64"] = network.double()(pixels.double()).numpy()
        rounding(name, file, pixels, expected["PyTorch in float64"])
        Path(onnx).unlink(missing_ok=True)
        subprocess.run([hetconv, "export", file, "--output", onnx], check=True, stdout=subprocess.DEVNULL)
        session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        expected["ONNX Runtime"] = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
        for options, tolerance in ((["--exact"], 1e-4), ([], 1e-3)):
            command = [hetconv, "run", file, "--input", source, "--output", result, *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for engine, logits in expected.items():
                what = " ".join([name, *options, "against", engine])
                try:
                    close(what, numpy.load(result).reshape(logits.shape), logits, tolerance)
                except SystemExit as fault:
                    faults.append(str(fault))
    if faults:
        raise SystemExit("\n".join(faults))


def top1(hetconv, data, models):
    """Hits of trained models on the held-out images, exact and fast."""
    for model in models:
        hits = []
        for options in ([], ["--fast"]):
            command = [hetconv, "eval", model, "--data", data, "--format", "json", *options]
            found = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
            hits.append(round(found["top1"] * found["images"]))
        print(f"{model}: {hits[0]} of {found['images']} exact, {hits[1]} fast")
        if abs(hits[0] - hits[1]) > 5:
            raise SystemExit(f"{model}: Winograd's algorithm changes the hits by more than five images")


def settle(description, tensors, folder, statistics=SETTLING):
    """Gives a fresh network statistics and moderate logits, and an image; returns the file, the image and its pixels.

    Fresh statistics are all the same, and logits of a hundred leave one class with a probability of 1: neither would
    show a mistake. Statistics of a handful of images make networks in which one rounding grows to 1e-4 of the result, in
    PyTorch as well; those of `SETTLING` do not.
    """
    import graph
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    network = graph.Network(description, tensors, "dense").train()
    channels, height, width = network.input_shape
    bytes = torch.randint(256, (height, width, channels), dtype=torch.uint8)
    normalisation = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    mean, std = (torch.tensor(normalisation[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = ((bytes.permute(2, 0, 1) / 255 - mean) / std)[None].contiguous()
    norms = {name: module for name, module in network.named_modules() if isinstance(module, graph.BatchNorm)}
    with torch.no_grad():
        for norm in norms.values():
            norm.momentum = None
            norm.bias.normal_(0, 0.1)
        network(torch.cat([pixels, torch.randn(statistics - 1, *network.input_shape)]))
        scale = network.eval()(pixels).std()
    for name, norm in norms.items():
        node = description["nodes"][int(name.rpartition(".")[2])]["name"]
        tensors |= {f"{node}.{key}": getattr(norm, key).detach() for key in ("bias", "running_mean", "running_var")}
    tensors["classifier.weight"] /= scale
    metadata = {"format": 1, "graph": description, "classes": [], "normalisation": normalisation}
    file, image = Path(folder, "model.safetensors"), Path(folder, "image.bmp")
    save_file(tensors, file, {"hetconv": json.dumps(metadata)})
    image.write_bytes(bitmap(bytes.flip(0, 2).numpy().tobytes(), height, width))
    return file, image, pixels


def bitmap(rows, height, width):
    """A BMP file of BGR rows from the bottom up, whose length is a multiple of four."""
    header = [(14 + 40 + len(rows), 4), (0, 4), (54, 4), (40, 4), (width, 4), (height, 4), (1, 2), (24, 2)]
    header += [(0, 4), (len(rows), 4), (2835, 4), (2835, 4), (0, 4), (0, 4)]
    return b"BM" + b"".join(value.to_bytes(size, "little") for value, size in header) + rows


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--zoo", nargs="*", metavar="NAME", help="check the runtime on these networks [all], nothing else"
    )
    parser.add_argument(
        "--statistics", type=int, default=SETTLING, help="images that settle a network of the zoo [%(default)s]"
    )
    parser.add_argument("--hetconv", help="the binary [default: a release build of this repository]")
    parser.add_argument(
        "--top1", nargs="+", metavar=("DATA", "MODEL"), help="compare exact and fast hits, nothing else"
    )
    options = parser.parse_args()
    hetconv = options.hetconv or run.build()
    with tempfile.TemporaryDirectory() as folder:
        if options.top1:
            top1(hetconv, options.top1[0], options.top1[1:])
        elif options.zoo is None:
            golden_layers()
            networks(hetconv, folder)
        else:
            zoo(hetconv, options.zoo, folder, options.statistics)
    print("all close")


if __name__ == "__main__":
    if sys.prefix != str(install.VENV):
        os.execv(install.python(), [install.python(), *sys.argv])
    main()
