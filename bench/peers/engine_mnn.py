"""MNN on an ONNX file, which it converts for itself first."""

import subprocess
import sys
import tempfile
from pathlib import Path

import engine


def load(file, batch, threads):
    """A function from NCHW images to logits."""
    import MNN
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        converted = str(Path(folder, "model.mnn"))
        convert = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX", "--modelFile", file]
        subprocess.run([*convert, "--MNNModel", converted, "--bizCode", "MNN"], check=True, stdout=sys.stderr)
        interpreter = MNN.Interpreter(converted)
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    source, result = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    layout = MNN.Tensor_DimensionType_Caffe

    def run(images):
        source.copyFrom(MNN.Tensor(images.shape, MNN.Halide_Type_Float, images, layout))
        interpreter.runSession(session)
        logits = MNN.Tensor(result.getShape(), MNN.Halide_Type_Float, layout)
        result.copyToHostTensor(logits)
        return numpy.array(logits.getNumpyData())

    return run


if __name__ == "__main__":
    engine.inference(["mnn"], load)
