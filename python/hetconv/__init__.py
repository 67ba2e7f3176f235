"""HetConv (Singh et al., CVPR 2019, arXiv 1903.04120) from Python.

* `Runtime` runs a model file of this project, or an ONNX file, without any framework.
* `hetconv.torch` has the layer, the conversion of models, and the paper's networks for PyTorch.
"""

from ._native import Error, network_names
from .runtime import Runtime

__all__ = ["Error", "Runtime", "network_names"]
