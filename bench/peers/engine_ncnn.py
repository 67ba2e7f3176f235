"""ncnn on an ONNX file, which pnnx converts first. ncnn takes one image at a time."""

import subprocess
import sys
import tempfile
from pathlib import Path

import engine


def load(file, batch, threads):
    """A function from NCHW images to logits."""
    import ncnn
    import numpy
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "model.onnx")
        link.symlink_to(Path(file).resolve())
        subprocess.run([pnnx.EXEC_PATH, link, "fp16=0"], cwd=folder, check=True, stdout=sys.stderr)
        net.load_param(str(Path(folder, "model.ncnn.param")))
        net.load_model(str(Path(folder, "model.ncnn.bin")))

    def run_one(image):
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], ncnn.Mat(image))
        return numpy.array(extractor.extract(net.output_names()[0])[1])

    return lambda images: numpy.stack([run_one(image).reshape(-1) for image in images])


if __name__ == "__main__":
    engine.inference(["ncnn", "pnnx"], load)
