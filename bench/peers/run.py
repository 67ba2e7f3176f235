"""Measures this project and its peers on the same layers, training steps and networks, in turn on one machine.

    python3 bench/peers/run.py training
    python3 bench/peers/run.py layers --threads 1,2
    python3 bench/peers/run.py inference --models resnet20,resnet20_p4

Every measurement is a process of its own. PyTorch and the others run once in each of their configurations; those within
5 % of the fastest in some case go on to the rounds, in which all take turns, and the fastest median of a case counts.
"""

import argparse
import csv
import filecmp
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import install

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = HERE / ".cache"
MODELS = "vgg16-cifar,vgg16-cifar_p4,resnet20,resnet20_p4,resnet56,resnet56_p4,mobilenet-cifar,mobilenet-cifar_p32"
# Channels, height and width, batch.
LAYERS = [(64, 32, 16), (256, 8, 64), (512, 4, 64), (128, 28, 4), (64, 56, 4), (256, 14, 8), (512, 7, 8), (256, 56, 2)]
SHAPES = ",".join(f"b{batch} m{filters} n{filters} {size}x{size} k3 s1" for filters, size, batch in LAYERS)
DIRECTIONS = {"forward": ["forward"], "forward+backward": ["forward", "grad_input", "grad_weight"]}
ONNX_ENGINES = ["onnxruntime", "openvino", "mnn", "ncnn"]
QUICK = ["--seconds", "1", "--runs", "5"]
COLUMNS = "case threads engine configuration median_ms min_ms max_ms ratio peak_memory_mib rounds".split()


@dataclass(frozen=True)
class Contender:
    """One engine in one configuration: a command that prints JSON, and how to read its measurements."""

    engine: str
    configuration: str
    command: tuple
    read: Callable

    def is_ours(self):
        """Whether it is this project: without configurations to try, and not allowed to fail."""
        return self.engine.startswith("hetconv")

    def run(self, threads, extra):
        """A list of `{case, median_ms, …}`."""
        own = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor")}
        environment = os.environ | own
        command = [str(part) for part in (*self.command, "--threads", threads, *extra)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = list(self.read(done.stdout)) if done.returncode == 0 else []
        if not found:
            raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
        return found


def peer(engine, configuration, *arguments):
    """A contender that is an engine script of this folder; it prints a line of JSON for every case."""
    read = lambda out: (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    return Contender(engine, configuration, (install.python(), HERE / f"engine_{engine}.py", *arguments), read)


def torch_peers(*arguments, **choices):
    """PyTorch in every combination of the choices, each of which is an option and its values."""
    for values in itertools.product(*choices.values()):
        options = [word for name, value in zip(choices, values) for word in (f"--{name}", value)]
        yield peer("torch", " ".join(values), *arguments, *options)


def training(options):
    """For every model, its contenders."""
    for model in options.models:
        case = f"{model} b{options.batch}"
        ours = (options.hetconv, *"benchmark --training --format json --model".split(), model, "--batch", options.batch)
        file = fresh_model(model)
        yield [
            Contender("hetconv", "", ours, lambda out, case=case: [json.loads(out) | {"case": case}]),
            *torch_peers(
                *("training", "--file", file, "--batch", options.batch),
                **{"form": forms(file), "layout": ["nchw", "nhwc"], "mode": ["eager", "compile"]},
                optimizer=["foreach", "fused"],
            ),
        ]


def layers(options):
    """The contenders for all layers."""
    parts = ",".join(map(str, options.parts))
    ours = (options.hetconv, *"benchmark --kernels --format json --parts".split(), parts)
    yield [
        Contender("hetconv", "", ours, lambda out: kernel_cases(json.loads(out), options)),
        *torch_peers(
            *("layers", "--shapes", ",".join(options.shapes), "--parts", parts),
            **{"form": ["grouped", "dense"], "layout": ["nchw", "nhwc"], "mode": ["eager", "compile"]},
        ),
    ]


def kernel_cases(kernels, options):
    """What `hetconv benchmark --kernels` measured, as the cases PyTorch measures."""
    for shape, parts, direction in itertools.product(options.shapes, options.parts, DIRECTIONS):
        milliseconds = 0
        for one in DIRECTIONS[direction]:
            found = [k for k in kernels if (k["shape"], k["parts"], k["direction"]) == (shape, parts, one)]
            if not found:
                raise RuntimeError(f"hetconv benchmark --kernels has no {one} of {shape} with {parts} parts")
            milliseconds += min(2e-6 * kernel["executed_macs"] / kernel["gflops"] for kernel in found)
        yield {"case": f"{shape} p{parts} {direction}", "median_ms": milliseconds}


def inference(options):
    """For every model, its contenders."""
    for model in options.models:
        file = fresh_model(model)
        case = f"{model} b{options.batch}"
        read = lambda out, case=case: [json.loads(out) | {"case": case}]
        ours = (options.hetconv, *"benchmark --format json --model".split(), file, "--batch", options.batch)
        contenders = [
            Contender("hetconv", "", ours, read),
            Contender("hetconv-exact", "", (*ours, "--exact"), read),
            *torch_peers(
                *("inference", "--file", file, "--batch", options.batch),
                **{"form": forms(file), "layout": ["nchw", "nhwc"], "mode": options.modes},
            ),
        ]
        for form in forms(file):
            onnx = export(file, form, options.batch)
            contenders += [peer(engine, form, onnx, "--batch", options.batch) for engine in ONNX_ENGINES]
        yield [contender for contender in contenders if contender.is_ours() or contender.engine in options.engines]


def fresh_model(name, folder=CACHE):
    """A model file with fresh weights."""
    file, new = folder / f"{name}.safetensors", folder / f"{name}.new.safetensors"
    cargo = ["cargo", "run", "--release", "--locked", "--package", "hetconv-graph", "--example", "fresh_model", "--"]
    folder.mkdir(exist_ok=True)
    subprocess.run([*cargo, name, new], cwd=ROOT, check=True, capture_output=True)
    # What was made from a file that has not changed is still good.
    if file.exists() and filecmp.cmp(file, new, shallow=False):
        new.unlink()
    else:
        new.replace(file)
    return file


def forms(file):
    """The forms a model file's network can take in PyTorch: only HetConv layers have two."""
    header = file.read_bytes()
    return ["grouped", "dense"] if b".ring" in header[: 8 + int.from_bytes(header[:8], "little")] else ["grouped"]


def export(file, form, batch):
    """The model as an ONNX file."""
    onnx = CACHE / f"{file.stem}-{form}-b{batch}.onnx"
    made_from = [file, HERE / "engine_torch.py", HERE / "graph.py"]
    if onnx.exists() and onnx.stat().st_mtime > max(source.stat().st_mtime for source in made_from):
        return onnx
    command = [install.python(), HERE / "engine_torch.py", "export", "--file", file, "--onnx", onnx, "--form", form]
    subprocess.run([*command, "--batch", str(batch), "--threads", "1"], check=True, capture_output=True)
    return onnx


def compare(contenders, threads, options):
    """The results of contenders for the same cases: a record for every case and engine."""
    tried = defaultdict(list)
    for contender in contenders:
        if contender.is_ours():
            continue
        note(f"trying {contender.engine} {contender.configuration} with {threads} threads")
        for found in attempt(contender, threads, QUICK, options):
            tried[found["case"], contender.engine].append((found["median_ms"], contender))
    chosen = {who for found in tried.values() for time, who in found if time <= 1.05 * min(time for time, _ in found)}
    order = [contender for contender in contenders if contender in chosen or contender.is_ours()]
    results = defaultdict(lambda: defaultdict(list))
    for round in range(options.rounds):
        note(f"round {round + 1} of {options.rounds} with {threads} threads")
        for contender in order if round % 2 == 0 else reversed(order):
            for found in attempt(contender, threads, [], options):
                results[found["case"]][contender].append(found)
    return [record for case, found in results.items() for record in records(case, threads, found)]


def attempt(contender, threads, extra, options):
    """What a contender measures. A peer that fails is named below the results; our own failure ends everything."""
    try:
        return contender.run(threads, extra)
    except RuntimeError as failure:
        if contender.is_ours():
            raise
        note(f"FAILED: {failure}")
        options.failed.append(f"{contender.engine} {contender.configuration}, {threads} threads")
        return []


def records(case, threads, results):
    """One record for every engine, that of its fastest contender."""
    fastest = {}
    for contender, found in results.items():
        median = statistics.median(one["median_ms"] for one in found)
        if contender.engine not in fastest or median < fastest[contender.engine][0]:
            fastest[contender.engine] = median, contender.configuration, found
    base = fastest.get("hetconv") or min(fastest.values(), key=lambda one: one[0])
    for engine, (median, configuration, found) in sorted(fastest.items()):
        times = [one["median_ms"] for one in found]
        memory = [one["peak_memory_mib"] for one in found if one.get("peak_memory_mib")]
        values = [case, threads, engine, configuration, median, min(times), max(times), median / base[0]]
        record = dict(zip(COLUMNS, [*values, max(memory, default=None), len(times)]))
        note(f"{case}, {engine}: {median:.4g} ms")
        yield record | {"versions": found[0].get("versions", {})}


def note(text):
    """Says on the error stream what is being done."""
    print(text, file=sys.stderr, flush=True)


def machine():
    """The CPU's name, and what else is needed to read the numbers."""
    cpu = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {"cpu": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def show(found, options):
    """Prints the results as asked for."""
    versions = {name: version for record in found for name, version in record.pop("versions").items()}
    versions["hetconv"] = subprocess.check_output([options.hetconv, "--version"], text=True).split()[-1]
    context = {**machine(), "versions": versions, "failed": options.failed}
    if options.format == "json":
        print(json.dumps({**context, "results": found}, indent=1))
    elif options.format == "csv":
        print("#", json.dumps(context))
        table = csv.DictWriter(sys.stdout, COLUMNS)
        table.writeheader()
        table.writerows(found)
    else:
        print(f"{context['cpu']}, {context['cores']} cores; {', '.join(' '.join(pair) for pair in versions.items())}")
        print("Median, least and most of the rounds' medians; ratio to hetconv or, without it, to the fastest.\n")
        shorten = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
        rows = [COLUMNS, *([shorten(record[column]) for column in COLUMNS] for record in found)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        for name in options.failed:
            print(f"failed: {name}")


def main():
    """Command line."""
    words = lambda text: text.split(",")
    numbers = lambda text: [int(number) for number in words(text)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "layers", "inference"])
    parser.add_argument("--models", "--model", type=words, default=MODELS, help="networks, with commas between")
    parser.add_argument("--batch", type=int, help="images in a batch [default: 128 for training, 1 for inference]")
    parser.add_argument("--shapes", type=words, default=SHAPES, help="layers, in the words of hetconv benchmark")
    parser.add_argument("--parts", type=numbers, default="1,2,4,8,32", help="P of the layers")
    parser.add_argument("--threads", type=numbers, default=str(os.cpu_count()), help="numbers of threads")
    parser.add_argument("--engines", type=words, default=",".join(["torch", *ONNX_ENGINES]), help="peers of inference")
    parser.add_argument("--modes", type=words, default="eager,freeze,compile", help="of PyTorch, for inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format", choices=["table", "json", "csv"], default="table")
    parser.add_argument("--hetconv", help="the binary [default: a release build of this repository]")
    options = parser.parse_args()
    options.batch = options.batch or (128 if options.what == "training" else 1)
    options.hetconv = options.hetconv or build()
    options.failed, found = [], []
    for contenders in {"training": training, "layers": layers, "inference": inference}[options.what](options):
        for threads in options.threads:
            found += compare(contenders, threads, options)
    show(found, options)


def build():
    """Builds the binary."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True, stdout=sys.stderr)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "release", "hetconv")


if __name__ == "__main__":
    main()
