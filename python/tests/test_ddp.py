"""Training in several processes: `examples/train_ddp.py`."""

import csv
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
image = pytest.importorskip("PIL.Image", reason="needs Pillow")

import hetconv  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_ddp.py"
# Seconds that a process waits for another.
TIMEOUT = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of small images: stripes of three widths in random colours."""
    root, draw = tmp_path_factory.mktemp("images"), random.Random(0)
    for split, count in [("train", 32), ("test", 8)]:
        for width in (1, 3, 8):
            folder = root / split / f"stripes{width}"
            folder.mkdir(parents=True)
            for number in range(count):
                colours = [tuple(draw.randrange(256) for _ in range(3)) for _ in range(2)]
                offset = draw.randrange(16)
                pixels = [colours[(x + offset) // width % 2] for _ in range(32) for x in range(32)]
                picture = image.new("RGB", (32, 32))
                picture.putdata(pixels)
                picture.save(folder / f"{number}.png")
    return root


def arguments(images, out, *more):
    """A short run: 3 epochs of 4 steps."""
    fixed = ["--model", "small-cifar_p4", "--batch", "24", "--epochs", "3", "--lr", "0.05", "--timeout", str(TIMEOUT)]
    return [str(SCRIPT), "--data", str(images), "--out", str(out), *fixed, *map(str, more)]


def environment(**more):
    # On a name server that does not know this machine, gloo would wait for it.
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **{key: str(value) for key, value in more.items()},
    }


def torchrun(processes, *script):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *script,
    ]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def pair(first, second, *more):
    """Two processes that find each other without `torchrun`, with their arguments and, if given, environments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, command in enumerate((first, second)):
        env = environment(RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        env |= more[rank] if more else {}
        processes.append(subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True))
    return processes


def losses(out):
    with open(out / "loss.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_learn_what_one_does(images, tmp_path):
    for processes in (1, 2):
        done = torchrun(processes, *arguments(images, tmp_path / str(processes)))
        assert done.returncode == 0, done.stderr
        assert "top-1 of 24 test images" in done.stdout
    one, two = (losses(tmp_path / str(processes)) for processes in (1, 2))
    assert len(one) == len(two) == 12
    assert two == pytest.approx(one, rel=2e-3)
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
    assert one[-1] < one[0]
    runtime = hetconv.Runtime(tmp_path / "2" / "model.safetensors")
    assert runtime.class_names == ["stripes1", "stripes3", "stripes8"]
    assert runtime.normalisation == ([0.0] * 3, [1.0] * 3)


def test_features_are_normalised_over_all_processes_too(images, tmp_path):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        # A small rate: sixteen batch-norms make much of rounding.
        done = torchrun(processes, *arguments(images, out, "--model", "vgg16-cifar_p4", "--epochs", 1, "--lr", 1e-4))
        assert done.returncode == 0, done.stderr
    one, two = (losses(tmp_path / str(processes)) for processes in (1, 2))
    assert len(one) == len(two) == 4
    assert two[:2] == pytest.approx(one[:2], rel=1e-3)


@pytest.mark.parametrize("size, left, covered", [((7, 7), 18, 4), ((14, 7), 25, 2), ((7, 14), 4, 4)], ids=str)
def test_of_images_of_another_size_the_middle_is_seen(tmp_path, monkeypatch, size, left, covered):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    example = importlib.import_module("train_ddp")
    # A ramp over the columns: each pixel has the mean of those that it covers, the first of which is `left`.
    ramp = image.new("RGB", (64, 32))
    ramp.putdata([(4 * x, 100, 200) for _ in range(32) for x in range(64)])
    (tmp_path / "ramp").mkdir()
    ramp.save(tmp_path / "ramp" / "0.png")
    pixels, label = example.ImageFolder(tmp_path, size)[0, 0]
    means = torch.tensor([4 * (left + covered * i + (covered - 1) / 2) for i in range(size[1])])
    expected = torch.stack([means, torch.full_like(means, 100), torch.full_like(means, 200)])
    torch.testing.assert_close(255 * pixels, expected[:, None].expand(3, *size), rtol=0, atol=1.01)
    assert label == 0
    # In training that is what is shifted and mirrored.
    training = example.ImageFolder(tmp_path, size, seed=3)
    assert torch.equal(training[2, 0][0], training.augmented(pixels, 2, 0))

    whole, _ = example.ImageFolder(tmp_path, (32, 64))[0, 0]
    original = torch.tensor(list(ramp.tobytes()), dtype=torch.float32).view(32, 64, 3).permute(2, 0, 1)
    torch.testing.assert_close(255 * whole, original)


def test_other_image_sizes_and_classes_without_test_images(images, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    shutil.rmtree(data / "test" / "stripes1")
    done = torchrun(1, *arguments(data, tmp_path / "run", "--size", 40, 24))
    assert done.returncode == 0, done.stderr
    # The classes that are left are the second and third of training.
    whole = torchrun(1, *arguments(images, tmp_path / "run", "--size", 40, 24, "--resume"))
    assert whole.returncode == 1 and "other settings" in whole.stderr
    runtime = hetconv.Runtime(tmp_path / "run" / "model.safetensors")
    assert runtime.input_shapes == [(3, 40, 24)]
    right = 0
    for label, name in enumerate(["stripes3", "stripes8"], 1):
        for file in sorted((data / "test" / name).iterdir()):
            with image.open(file) as picture:
                # 16.8 × 28 pixels, seven eighths of the 19.2 × 32 that have the network's proportions.
                middle = picture.resize((24, 40), image.BILINEAR, (7.6, 2, 24.4, 30))
                pixels = torch.tensor(list(middle.tobytes()), dtype=torch.float32)
            pixels = pixels.view(1, 40, 24, 3).permute(0, 3, 1, 2).contiguous() / 255
            right += int(torch.tensor(runtime.run(pixels)).argmax()) == label
    assert f"top-1 of 16 test images: {100 * right / 16:.2f} %" in done.stdout

    (data / "test" / "spots").mkdir()
    strange = torchrun(1, *arguments(data, tmp_path / "other"))
    assert strange.returncode == 1 and "not learned: spots" in strange.stderr


def test_one_process_killed_ends_the_other_and_the_run_resumes(images, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    done = torchrun(2, *arguments(images, whole, "--checkpoint-every", 2))
    assert done.returncode == 0, done.stderr

    # Without torchrun, which would stop the survivor itself. One epoch more than there is time for.
    endless = arguments(images, out, "--checkpoint-every", 2)
    # The second one stops where it is told to, so that it is surely killed in the middle.
    survivor, killed = pair(["-c", STOPPING, *endless], ["-c", STOPPING, *endless], {}, {"HETCONV_STOP": "5"})
    killed.wait(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    since = time.monotonic()
    _, message = survivor.communicate(timeout=3 * TIMEOUT)
    assert survivor.returncode not in (0, None), message
    assert time.monotonic() - since < 2 * TIMEOUT
    assert "Error" in message and not (out / "model.safetensors").exists()
    assert len(losses(out)) == 4

    done = torchrun(2, *arguments(images, out, "--checkpoint-every", 2, "--resume"))
    assert done.returncode == 0, done.stderr
    assert losses(out) == losses(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    done = torchrun(1, *arguments(images, out, "--resume", "--seed", 1))
    assert done.returncode != 0 and "other settings" in done.stderr


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_a_folder_that_holds_a_run_is_refused_by_all_processes(images, tmp_path, name):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    out.mkdir()
    for file in (name, "loss.csv"):
        (out / file).write_text("dear")
    # The second one does not see the folder, as on another machine.
    for process in pair(arguments(images, out), arguments(images, elsewhere)):
        _, message = process.communicate(timeout=120)
        assert process.returncode == 1 and "already holds a run" in message and "--resume" in message
        assert "Traceback" not in message
    assert {file.name: file.read_text() for file in out.iterdir()} == {name: "dear", "loss.csv": "dear"}
    assert not elsewhere.exists()


# Runs the example, and kills its own process in the middle of a step.
STOPPING = """
import os, runpy, signal, sys, torch
stop, steps = int(os.environ.get("HETCONV_STOP", 0)), 0
backward = torch.Tensor.backward
def counted(*arguments, **options):
    global steps
    steps += 1
    if steps == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(*arguments, **options)
torch.Tensor.backward = counted
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
