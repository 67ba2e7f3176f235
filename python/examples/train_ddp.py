"""Trains a HetConv network on a folder of images, in one process or many, on one machine or many.

    torchrun --nproc-per-node 2 train_ddp.py --data IMAGES --out runs/a

IMAGES has a folder for each class; with folders `train` and `test` in it, these have them. Processes share the work through
gloo on CPUs and nccl on GPUs. The batch is the global one: any number of processes gives the same loss curve, within
rounding, because every random draw is a function of seed, epoch and image, and batch-norm uses the moments of the whole batch.

A run that was stopped, however roughly, goes on with `--resume` from its last checkpoint, with any number of processes;
without it, a folder that holds a run is refused. It ends with `model.safetensors` for the `hetconv` command and
`hetconv.Runtime`.
"""

import argparse
import csv
import json
import math
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import hetconv.torch as het

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp"}
COLUMNS = ["step", "epoch", "loss"]


def generator(*purpose):
    """Random numbers that are a function of these numbers."""
    seed = 0
    for number in purpose:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def middle(size, wanted):
    """What is looked at of an image, as a box: of one that has not the wanted size, seven eighths, in the middle, of the
    largest part with the wanted proportions, as by `hetconv eval`. Sizes are `(width, height)`."""
    if size == wanted:
        return None
    scale = min(own / side for own, side in zip(size, wanted)) * 7 / 8
    left, top = ((own - scale * side) / 2 for own, side in zip(size, wanted))
    return left, top, size[0] - left, size[1] - top


class ImageFolder(Dataset):
    """The images below a folder of classes, or the middle of those that have another size, as tensors from 0 to 1; read by
    `(epoch, index)`."""

    def __init__(self, root, size, seed=None, classes=None):
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        # A class without test images keeps its number.
        self.classes = classes or found
        if unknown := set(found) - set(self.classes):
            raise SystemExit(f"{root} has classes that are not learned: {', '.join(sorted(unknown))}")
        files = [(path, label) for label, name in enumerate(self.classes) for path in sorted((root / name).rglob("*"))]
        self.files = [(path, label) for path, label in files if path.suffix.lower() in EXTENSIONS]
        if not self.files:
            raise SystemExit(f"{root} has no folders of images")
        self.size, self.seed = size, seed

    def __len__(self):
        return len(self.files)

    def __getitem__(self, key):
        epoch, index = key
        path, label = self.files[index]
        height, width = self.size
        with Image.open(path) as image:
            box = middle(image.size, (width, height))
            image = image.convert("RGB").resize((width, height), Image.BILINEAR, box)
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1) / 255
        return (pixels if self.seed is None else self.augmented(pixels, epoch, index)), label

    def augmented(self, pixels, epoch, index):
        """Shifted by up to an eighth, and mirrored every other time."""
        draw = generator(self.seed, epoch, index)
        reach = [side // 8 for side in self.size]
        top, left = (int(torch.randint(2 * by + 1, (), generator=draw)) for by in reach)
        padded = F.pad(pixels, (reach[1], reach[1], reach[0], reach[0]))
        pixels = padded[:, top : top + self.size[0], left : left + self.size[1]]
        return pixels.flip(2) if bool(torch.randint(2, (), generator=draw)) else pixels


class Batches:
    """This process's part of every global batch of an epoch, from a step on."""

    def __init__(self, images, batch, epoch, first, seed):
        order = torch.randperm(len(images), generator=generator(seed, epoch))
        self.order, self.batch, self.epoch, self.first = order.tolist(), batch, epoch, first
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def __len__(self):
        return len(self.order) // self.batch - self.first

    def __iter__(self):
        own = self.batch // self.world
        for step in range(self.first, len(self.order) // self.batch):
            start = step * self.batch + self.rank * own
            yield [(self.epoch, index) for index in self.order[start : start + own]]


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the batches of all processes. `torch.nn.SyncBatchNorm` does the same, on GPUs alone."""

    def forward(self, x):
        if not self.training or dist.get_world_size() == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        # Of images, or of features alone.
        others, channels = [0, *range(2, x.dim())], (-1, *(1 for _ in range(2, x.dim())))
        mean = all_reduce(x.sum(others)) / count
        # From what is left once the mean is gone: a difference of large squares would be none of a variance.
        centred = x - mean.view(channels)
        variance = all_reduce(centred.square().sum(others)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(channels) + self.bias.view(channels)

    def _check_input_dim(self, input):
        pass


def global_batch_norms(model):
    """The model with all its batch-norms over all processes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm
    return model


class Run:
    """A folder with the checkpoint, the loss curve and the model of a run."""

    def __init__(self, folder, arguments):
        self.folder, self.main = folder, dist.get_rank() == 0
        self.settings = {name: str(value) for name, value in vars(arguments).items() if name in SETTINGS}
        self.rows = []

    def refuse_another(self, device):
        """Ends every process if the folder holds a run already. The first process sees it and tells the others."""
        found = [any((self.folder / name).exists() for name in ("checkpoint.pt", "model.safetensors"))]
        dist.broadcast_object_list(found, src=0, device=device)
        if found[0]:
            raise SystemExit(
                f"{self.folder} already holds a run; go on by --resume if its checkpoint is there, or choose another --out"
            )

    def save(self, step, model, optimizer):
        """Writes the checkpoint beside its place, and renames it when it is on the disk."""
        if not self.main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"settings": self.settings, "rows": self.rows}
        beside = self.folder / "checkpoint.pt.new"
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / "checkpoint.pt")
        with open(self.folder / "loss.csv", "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *self.rows])

    def load(self, model, optimizer, device):
        """Where to go on; the beginning, without a checkpoint. The first process has it and hands it to the others."""
        path, found = self.folder / "checkpoint.pt", [None]
        if self.main and path.exists():
            found = [torch.load(path, map_location="cpu")]
        dist.broadcast_object_list(found, src=0, device=device)
        (state,) = found
        if state is None:
            return 0
        if state["settings"] != self.settings:
            raise SystemExit(f"{path} is of a run with other settings: {json.dumps(state['settings'])}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.rows = state["rows"]
        return state["step"]


# What a run has to have in common with the one that it continues.
SETTINGS = ["data", "model", "size", "batch", "epochs", "lr", "weight_decay", "seed"]


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of classes, or of `train` and `test`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--model", default="resnet20_p4", help="a network of the paper (default: resnet20_p4)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[32, 32], metavar=("H", "W"), help="pixels (default: 32 32)"
    )
    parser.add_argument("--batch", type=int, default=128, help="images of all processes together (default: 128)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.1, help="the largest, in a cosine (default: 0.1)")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images, for each one that trains")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="how long to wait for each other")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    arguments = parser.parse_args()

    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=arguments.timeout), **alone)
    try:
        train(arguments, device)
    finally:
        dist.destroy_process_group()


def train(arguments, device):
    """Trains and evaluates."""
    world, main = dist.get_world_size(), dist.get_rank() == 0
    if arguments.batch % world:
        raise SystemExit(f"--batch {arguments.batch} cannot be shared by {world} processes")
    run = Run(arguments.out, arguments)
    if not arguments.resume:
        run.refuse_another(device)
    root = arguments.data / "train" if (arguments.data / "train").is_dir() else arguments.data
    images = ImageFolder(root, arguments.size, arguments.seed)
    steps = len(images) // arguments.batch
    if steps == 0:
        raise SystemExit(f"{len(images)} images are less than one batch of {arguments.batch}")

    size = tuple(arguments.size)
    network = het.network(arguments.model, len(images.classes), seed=arguments.seed, image_size=size)
    network = global_batch_norms(network).to(device, memory_format=torch.channels_last).train()
    decay = [weight for weight in network.parameters() if weight.dim() > 1]
    others = [weight for weight in network.parameters() if weight.dim() <= 1]
    groups = [{"params": decay, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=arguments.lr, momentum=0.9, nesterov=True)
    step = run.load(network, optimizer, device) if arguments.resume else 0
    # All processes have the same running means and variances already.
    devices = [device] if device.type == "cuda" else None
    model = DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

    for epoch in range(step // steps, arguments.epochs):
        batches = Batches(images, arguments.batch, epoch, step % steps, arguments.seed)
        for pixels, labels in DataLoader(images, batch_sampler=batches, num_workers=arguments.workers):
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * (1 + math.cos(math.pi * step / (steps * arguments.epochs))) / 2
            pixels = pixels.to(device, memory_format=torch.channels_last)
            loss = F.cross_entropy(model(pixels), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            total = loss.detach().clone()
            dist.all_reduce(total)
            run.rows.append([step, epoch, float(total) / world])
            if step % arguments.checkpoint_every == 0:
                run.save(step, network, optimizer)
                if main:
                    print(
                        f"epoch {epoch + 1}, step {step} of {steps * arguments.epochs}: loss {run.rows[-1][2]:.4f}",
                        flush=True,
                    )
    run.save(step, network, optimizer)
    if main:
        # Pixels from 0 to 1 as they are.
        normalisation = [0.0] * 3, [1.0] * 3
        path = arguments.out / "model.safetensors"
        het.save_model_file(network, path, class_names=images.classes, normalisation=normalisation)
    if (arguments.data / "test").is_dir():
        evaluate(arguments, network, images.classes, device)


@torch.no_grad()
def evaluate(arguments, network, classes, device):
    """Top-1 on the test images, each process counting its share."""
    images = ImageFolder(arguments.data / "test", arguments.size, classes=classes)
    rank, world = dist.get_rank(), dist.get_world_size()
    own = [(0, index) for index in range(rank, len(images), world)]
    right = torch.zeros((), device=device)
    network.eval()
    for pixels, labels in DataLoader(images, sampler=own, batch_size=arguments.batch, num_workers=arguments.workers):
        pixels = pixels.to(device, memory_format=torch.channels_last)
        right += (network(pixels).argmax(1) == labels.to(device)).sum()
    dist.all_reduce(right)
    if rank == 0:
        print(f"top-1 of {len(images)} test images: {100 * float(right) / len(images):.2f} %")


if __name__ == "__main__":
    main()
