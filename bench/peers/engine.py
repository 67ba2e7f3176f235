"""What all engines share: arguments, the clock, and the line of JSON they print for every case they measured."""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from importlib.metadata import version

WARM_UP = 3
# PyTorch frees and allocates its tensors anew in every step; so glibc keeps the memory instead of giving it back.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_ARENA_MAX": "1",
}


def parser(description):
    """The arguments of every engine."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0, help="measure at least so long")
    parser.add_argument("--runs", type=int, default=10, help="and at least so many runs")
    return parser


def measure(run, arguments):
    """Warms up, then times runs until there are enough of them and they took long enough."""
    for _ in range(WARM_UP):
        run()
    times, started = [], time.perf_counter()
    while len(times) < arguments.runs or time.perf_counter() - started < arguments.seconds:
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return {"median_ms": statistics.median(times), "p10_ms": deciles[0], "p90_ms": deciles[-1], "runs": len(times)}


def report(case, packages, arguments, measured):
    """Prints one measurement; peak memory is that of the whole process so far."""
    versions = {package: version(package) for package in packages}
    peak = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(
        json.dumps({"case": case, "versions": versions, "threads": arguments.threads, **measured, **peak}), flush=True
    )


def inference(packages, load):
    """The main program of an inference engine: `load(file, batch, threads)` gives a function from images to logits."""
    import numpy
    import onnx

    arguments = parser(f"Measures {packages[0]} on an ONNX file.")
    arguments.add_argument("file")
    arguments.add_argument("--batch", type=int, default=1)
    arguments = arguments.parse_args()
    model = onnx.load(arguments.file, load_external_data=False)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if shape[0] != arguments.batch:
        raise SystemExit(f"{arguments.file} was exported for a batch of {shape[0]}")
    images = numpy.random.default_rng(0).random(shape, dtype=numpy.float32)
    run = load(arguments.file, arguments.batch, arguments.threads)
    report(f"{model.graph.name} b{arguments.batch}", packages, arguments, measure(lambda: run(images), arguments))


def keep_memory():
    """Starts this script anew if glibc is not told to keep memory, which it only learns from the environment."""
    if not os.environ.keys() >= KEEP_MEMORY.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
