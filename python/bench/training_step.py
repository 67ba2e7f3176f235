"""Training steps of a HetConv network in PyTorch: the kernels of this project beside PyTorch's own convolutions.

    python bench/training_step.py --model vgg16-cifar_p4 --batch 128 --threads 2

Forward, cross-entropy, backward and SGD with momentum on random images, float32. All variants are one network with the same
weights, and take their steps in turn in one process:

* `kernels`: `HetConv2d` on the kernels;
* `decomposed`: a grouped 3×3 plus a 1×1 convolution and their sum, PyTorch's own modules;
* `standard`: the network with standard convolutions, for comparison.

Each in both memory formats; of the decomposed one, the faster counts. `blocked` layers have their classes side by side in
memory; of `shifted` ones both variants bring the channels together first.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from hetconv.torch import decompose, network

# glibc gives large blocks back to the system at once, and every step faults them in again: told to keep them, all variants
# are faster.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_ARENA_MAX": "1",
}
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


class Overwriting(nn.Module):
    """The decomposed layer as one would write it for speed: the sum in the place of its first part, and PyTorch's own shuffle
    where the channels of a class do not stand side by side."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.groups = layer.gwc.groups

    def forward(self, x):
        """The layer's result."""
        result = self.layer.pwc(x)
        if self.layer.channel_order is None:
            return result.add_(self.layer.gwc(x))
        result = result.add_(self.layer.gwc(F.channel_shuffle(x, x.shape[1] // self.groups)))
        return F.channel_shuffle(result, self.groups)


def rearranged(net, arrangement):
    """The network with HetConv layers of another arrangement, and fresh weights for them."""
    for node in net.description["graph"]["nodes"]:
        kind = node["op"].get("kind")
        if isinstance(kind, dict) and "het" in kind:
            ((_, fields),) = kind["het"]["arrangement"].items()
            kind["het"]["arrangement"] = {arrangement: fields}
    return type(net)(net.description)


def variants(arguments):
    """Every network that takes part."""
    for arrangement in arguments.arrangements:
        torch.manual_seed(0)
        net = rearranged(network(arguments.model), arrangement)
        yield f"kernels, {arrangement}", net
        plain = decompose(net)
        for name, module in list(plain.named_modules()):
            if hasattr(module, "gwc"):
                parent, _, own = name.rpartition(".")
                inner = Overwriting(module)
                for child in [child for child in module._modules if child not in ("gwc", "pwc")]:
                    # A batch-norm that bears the layer's name.
                    inner.add_module(child, module._modules.pop(child))
                plain.get_submodule(parent)._modules[own] = inner
        yield f"decomposed, {arrangement}", plain
    if arguments.standard:
        yield "standard", network(arguments.model.partition("_")[0])


def stepper(net, arguments, memory_format):
    """A function that takes one training step."""
    net = net.train().to(memory_format=memory_format)
    images = torch.rand(arguments.batch, *net.input_shape).contiguous(memory_format=memory_format)
    labels = torch.arange(arguments.batch) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def profile(step):
    """Where the time goes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40))


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16-cifar_p4")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--arrangements", nargs="+", default=["blocked", "shifted"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--standard", action="store_true", help="the standard network, too")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steppers = {}
    for memory_format in arguments.formats:
        for name, net in variants(arguments):
            steppers[name, memory_format] = stepper(net, arguments, FORMATS[memory_format])
    if arguments.profile:
        for (name, memory_format), step in steppers.items():
            print(f"{name}, {memory_format}")
            profile(step)
        return
    times = {key: [] for key in steppers}
    for step in steppers.values():
        step()
        step()
    for _ in range(arguments.rounds):
        for key, step in steppers.items():
            begin = time.perf_counter()
            step()
            times[key].append(time.perf_counter() - begin)
    report(arguments, {key: (statistics.median(of), min(of), max(of)) for key, of in times.items()})


def report(arguments, times):
    """Prints the times, and how much faster the kernels are."""
    best = {}
    for (name, memory_format), (median, *_) in times.items():
        best[name] = min(best.get(name, (median, memory_format)), (median, memory_format))
    ratios = {
        arrangement: best[f"decomposed, {arrangement}"][0] / best[f"kernels, {arrangement}"][0]
        for arrangement in arguments.arrangements
    }
    if arguments.format == "json":
        rows = [{"variant": name, "memory": memory, "seconds": of} for (name, memory), of in times.items()]
        print(
            json.dumps(
                {"model": arguments.model, "batch": arguments.batch, "steps": rows, "decomposed/kernels": ratios}
            )
        )
        return
    print(
        f"{arguments.model}, batch {arguments.batch}, {arguments.threads} threads, torch {torch.__version__}; ms a step"
    )
    for (name, memory_format), (median, least, most) in times.items():
        print(f"{name:22} {memory_format:14} {1e3 * median:8.0f}  ({1e3 * least:.0f}–{1e3 * most:.0f})")
    for arrangement, ratio in ratios.items():
        print(f"decomposed / kernels, {arrangement}, each in its faster format: {ratio:.2f}")


if __name__ == "__main__":
    if not os.environ.keys() >= KEEP_MEMORY.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    main()
