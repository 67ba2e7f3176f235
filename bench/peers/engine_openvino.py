"""OpenVINO on an ONNX file, in f32 as all others."""

import engine


def load(file, batch, threads):
    """A function from NCHW images to logits."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.compile_model(file, "CPU", options).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0]


if __name__ == "__main__":
    engine.inference(["openvino"], load)
