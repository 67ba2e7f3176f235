"""Checks that what this project writes as ONNX is what it means.

    python3 bench/peers/round_trip.py
    python3 bench/peers/round_trip.py --model runs/vgg/model.safetensors --data cifar10.zip

Networks with fresh weights are exported in all styles, converted, and converted after export. The official checker has to
accept each file, ONNX Runtime to run it, `hetconv run` to agree, and `hetconv summary` to count what it counts for the network
itself. With --model, a trained network's file (several times if need be), ONNX Runtime has to give the same top-1 as
`hetconv eval`, to the image, in all styles; --data is a .zip of `test/CLASS/IMAGE`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import install
import networks
import run

STYLES = ["standard", "dense", "function"]
NETWORKS = [
    *["small-cifar_p4", "small-cifar_p4_se", "small-cifar_gwc4_pwc", "small-cifar_dwc_pwc", "resnet20", "resnet20_p4"],
    *["resnet56_p2", "vgg16-cifar_pc", "mobilenet-cifar_p32", "resnet34_p8", "resnet50_p4"],
]


def tool(hetconv, *arguments):
    """What a command prints as JSON."""
    command = [hetconv, *arguments, "--format", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stderr}")
    return json.loads(done.stdout)


def fresh(name, hetconv, folder):
    """Checks one network in all forms."""
    import numpy
    import onnx

    file = run.fresh_model(name)
    counted = tool(hetconv, "summary", file)
    size = counted["input"]
    image = numpy.random.default_rng(1).standard_normal([2, *size[1:]], dtype=numpy.float32)
    written = []
    for style in STYLES:
        written.append((folder / f"{name}-{style}.onnx", counted["macs"]))
        tool(hetconv, "export", file, "--style", style, "--output", written[-1][0])
    if "_" not in name:
        for arrangement in ("shifted", "blocked"):
            converted = folder / f"{name}-{arrangement}.onnx"
            options = ["-p", "4", "--arrangement", arrangement, "--output"]
            tool(hetconv, "convert", written[0][0], *options, converted)
            model = folder / f"{name}-{arrangement}.safetensors"
            tool(hetconv, "convert", file, *options, model)
            macs = tool(hetconv, "summary", model)["macs"]
            exported = folder / f"{name}-{arrangement}-exported.onnx"
            tool(hetconv, "export", model, "--output", exported)
            written += [(converted, macs), (exported, macs)]
    for onnx_file, macs in written:
        onnx.checker.check_model(str(onnx_file), full_check=True)
        found, said = networks.hetconv_run(hetconv, onnx_file, image, folder)
        if said:
            raise SystemExit(f"{onnx_file.name}: {said}")
        difference = networks.difference(found, networks.onnxruntime_session(onnx_file)(image)[0])
        again = tool(hetconv, "summary", onnx_file)["macs"]
        print(f"{onnx_file.name}: differs by {difference:.1e}, {again:,} MACs", flush=True)
        if not difference < networks.TOLERANCE or again != macs:
            raise SystemExit(f"{onnx_file.name}: differs by {difference}, {again} MACs instead of {macs}")


def test_images(data, folder):
    """The test images as NHWC bytes, the class of each, and a .zip of the same pixels without loss.

    Decoders of JPEG differ by a grey level here and there, which would be the difference that is measured.
    """
    import numpy
    import PIL.Image

    images, labels, lossless = [], [], Path(folder, "lossless.zip")
    with zipfile.ZipFile(data) as archive, zipfile.ZipFile(lossless, "w") as written:
        seen = set()
        for name in sorted(archive.namelist()):
            split, label = Path(name).parts[-3:-1] if name.count("/") > 1 and not name.endswith("/") else (None, None)
            if split not in ("train", "test") or (split == "train" and label in seen):
                continue
            seen |= {label} if split == "train" else set()
            image = PIL.Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            png = io.BytesIO()
            image.save(png, "png")
            written.writestr(f"{split}/{label}/{Path(name).stem}.png", png.getvalue())
            if split == "test":
                images.append(numpy.asarray(image))
                labels.append(label)
    if not images:
        raise SystemExit(f"{data} has no test/CLASS/IMAGE")
    return numpy.stack(images), labels, lossless


def trained(model, data, hetconv, folder):
    """Checks a trained network's top-1 on all test images."""
    import numpy
    from safetensors import safe_open

    with safe_open(model, "np") as tensors:
        description = json.loads(tensors.metadata()["hetconv"])
    images, labels, lossless = test_images(data, folder)
    labels = numpy.array([description["classes"].index(label) for label in labels])
    mean, std = (numpy.float32(description["normalisation"][key]) for key in ("mean", "std"))
    pixels = ((images.astype(numpy.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    evaluated = tool(hetconv, "eval", model, "--data", lossless)
    right = round(evaluated["top1"] * evaluated["images"])
    print(f"{model}: hetconv eval has {right} of {evaluated['images']} right")
    for style in STYLES:
        file = folder / f"trained-{style}.onnx"
        tool(hetconv, "export", model, "--style", style, "--output", file)
        session = networks.onnxruntime_session(file)
        batches = [numpy.ascontiguousarray(pixels[start : start + 250]) for start in range(0, len(pixels), 250)]
        logits = numpy.concatenate([session(batch)[0] for batch in batches])
        theirs = int((logits.argmax(1) == labels).sum())
        ours = numpy.concatenate([networks.hetconv_run(hetconv, file, batch, folder)[0] for batch in batches[:4]])
        other = int((ours.argmax(1) != logits[: len(ours)].argmax(1)).sum())
        print(
            f"  {style}: ONNX Runtime {theirs}; of {len(ours)} images {other} have another class in hetconv run",
            flush=True,
        )
        if theirs != right or len(labels) != evaluated["images"]:
            raise SystemExit(f"{style}: ONNX Runtime has {theirs} right, not {right}")


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hetconv", help="the binary [default: a release build of this repository]")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="those with fresh weights; may be empty")
    parser.add_argument("--model", action="append", default=[], help="a trained network's model file")
    parser.add_argument("--data", help="the images it is evaluated on")
    options = parser.parse_args()
    if options.model and not options.data:
        parser.error("--model needs --data")
    hetconv = options.hetconv or run.build()
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, options.networks.split(",")):
            fresh(name, hetconv, Path(folder))
        for model in options.model:
            trained(model, options.data, hetconv, Path(folder))
    print("all agree")


if __name__ == "__main__":
    if sys.prefix != str(install.VENV):
        os.execv(install.python(), [install.python(), *sys.argv])
    main()
