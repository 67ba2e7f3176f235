"""HetConv for PyTorch: the layer, conversion of models, the paper's networks, ONNX.

`HetConv2d` has `torch.nn.Conv2d`'s arguments plus `parts` and `arrangement`. On the CPU, `float32` runs on the project's
kernels, forward and backward; every other device and type, and autocast, takes PyTorch's own operators.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("hetconv.torch needs PyTorch: pip install 'hetconv[torch]'") from error

from .convert import ConvertedLayer, ConvertReport, convert
from .decompose import Decomposed, decompose
from .layer import HetConv2d
from .network import Network, load_model_file, network, save_model_file
from .onnx import export_onnx

__all__ = [
    "ConvertReport",
    "ConvertedLayer",
    "Decomposed",
    "HetConv2d",
    "Network",
    "convert",
    "decompose",
    "export_onnx",
    "load_model_file",
    "network",
    "save_model_file",
]
