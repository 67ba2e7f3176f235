"""Training on photos, decoding included: images per second of this project and of PyTorch, in turn on one machine.

    bench/peers/.venv/bin/python bench/peers/photos.py PHOTOS.zip --model resnet50_p4

Both see random parts of the same photos (8 to 100 % of the area), scaled to a square and mirrored every other time, and
make steps from as many accumulated batches. PyTorch decodes with Pillow in worker processes (`DataLoader`), reads the
network from the file that this project has written, and tries every combination of layout and form of HetConv for a step;
the fastest goes on to the rounds.
"""

import argparse
import csv
import io
import itertools
import math
import random
import statistics
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import engine
import graph
import torch
import torch.nn.functional as F
from PIL import Image

HERE = Path(__file__).resolve().parent
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Photos(torch.utils.data.Dataset):
    """The photos of an archive, as training sees them."""

    def __init__(self, path, size, classes):
        self.path, self.size, self.zip = path, size, None
        with zipfile.ZipFile(path) as archive:
            self.names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        labels = {folder: i for i, folder in enumerate(sorted({name.split("/")[-2] for name in self.names}))}
        assert len(labels) == classes, "the network has other classes"
        self.labels = [labels[name.split("/")[-2]] for name in self.names]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        # A worker process opens the archive for itself.
        self.zip = self.zip or zipfile.ZipFile(self.path)
        image = Image.open(io.BytesIO(self.zip.read(self.names[index]))).convert("RGB")
        box = part(*image.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self.size, self.size, 3).permute(2, 0, 1).float().div_(255).sub_(MEAN).div_(STD)
        return (pixels.flip(2) if random.random() < 0.5 else pixels), self.labels[index]


def part(width, height):
    """The box of a random part, as torchvision's RandomResizedCrop draws it."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def torch_rate(arguments, file, form, layout, steps):
    """Images per second of some steps, after one batch to warm up."""
    description, tensors = graph.read(file)
    classes = tensors["classifier.weight"].shape[0]
    network = graph.Network(description, tensors, form).train().to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    photos = Photos(arguments.photos, arguments.size, classes)
    sampler = torch.utils.data.RandomSampler(photos, True, (steps * arguments.accumulate + 1) * arguments.batch)
    loader = torch.utils.data.DataLoader(
        photos, arguments.batch, sampler=sampler, num_workers=arguments.workers, drop_last=True
    )
    started = None
    for i, (images, labels) in enumerate(loader):
        images = images.contiguous(memory_format=LAYOUTS[layout])
        (F.cross_entropy(network(images), labels) / arguments.accumulate).backward()
        if i % arguments.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if i == 0:
            started = time.perf_counter()
    return steps * arguments.accumulate * arguments.batch / (time.perf_counter() - started)


def our_run(arguments, folder, epochs=2):
    """Trains for some epochs; images per second of the last, and the model file."""
    out = Path(folder, f"run-{time.monotonic_ns()}")
    options = f"--image-size {arguments.size} --batch-size {arguments.batch} --accumulate {arguments.accumulate}"
    command = [arguments.hetconv, "train", "--model", arguments.model, "--data", arguments.photos, *options.split()]
    command += ["--hold-out", "10", "--recipe", "paper", "--lr", "0.01", "--epochs", epochs, "--out", out]
    command += ["--threads", arguments.threads]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    with open(out / "metrics.csv") as file:
        *_, last = csv.DictReader(file)
    return float(last["images_per_second"]), out / "model.safetensors"


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a .zip of class folders")
    parser.add_argument("--model", default="resnet50_p4")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="steps of PyTorch in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1, help="processes that decode for PyTorch")
    parser.add_argument("--hetconv", default="target/release/hetconv", help="the binary")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        _, file = our_run(arguments, folder, epochs=1)
        ours, torchs = [], []
        tried = {
            case: torch_rate(arguments, file, *case, 1) for case in itertools.product(["grouped", "dense"], LAYOUTS)
        }
        best = max(tried, key=tried.get)
        for _ in range(arguments.rounds):
            torchs.append(torch_rate(arguments, file, *best, arguments.steps))
            ours.append(our_run(arguments, folder)[0])
    for name, rates in [("hetconv", ours), (f"torch {' '.join(best)}", torchs)]:
        each = ", ".join(f"{rate:.2f}" for rate in rates)
        print(f"{arguments.model} {arguments.size} {name}: {statistics.median(rates):.2f} images/s ({each})")


if __name__ == "__main__":
    engine.keep_memory()
    main()
