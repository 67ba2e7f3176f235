"""The extension module; private to this package.

Whoever calls a `Layer` vouches for the addresses: they are those of contiguous `float32` tensors of the layer's shapes.
"""

import os
from typing import Any

class Error(ValueError):
    """What hetconv cannot do; the message says why."""

class Layer:
    """The kernels of a HetConv layer, described as a `conv2d` operator of a model file is."""

    def __init__(self, description: str) -> None: ...
    @property
    def channel_classes(self) -> list[int]: ...
    @property
    def filter_classes(self) -> list[int]: ...
    @property
    def max_spatial(self) -> int: ...
    @property
    def weights(self) -> int: ...
    def forward(
        self,
        images: tuple[int, tuple[int, int]],
        addresses: tuple[int, int, int, int],
        output: int,
        exact: bool,
        threads: int,
    ) -> None: ...
    def grad_input(
        self,
        images: tuple[int, tuple[int, int]],
        addresses: tuple[int, int, int],
        grad_input: int,
        exact: bool,
        threads: int,
    ) -> None: ...
    def grad_weight(
        self,
        images: tuple[int, tuple[int, int]],
        addresses: tuple[int, int],
        targets: tuple[int, int],
        exact: bool,
        threads: int,
    ) -> None: ...

class Runtime:
    """A compiled network."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch: int,
        exact: bool,
        threads: int | None,
        image_size: tuple[int, int] | None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def input_names(self) -> list[str]: ...
    @property
    def input_shapes(self) -> list[list[int]]: ...
    @property
    def output_shapes(self) -> list[list[int]]: ...
    @property
    def output_names(self) -> list[str]: ...
    @property
    def class_names(self) -> list[str]: ...
    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None: ...
    def run(self, batch: int, inputs: list[Any], outputs: list[Any]) -> None: ...

def build_model(
    name: str, classes: int | None, seed: int, image_size: tuple[int, int] | None
) -> tuple[str, dict[str, tuple[list[int], bytes]]]: ...
def network_names() -> list[str]:
    """The networks of the paper: `ARCH[_pP|_pc|_gwcG_pwc|_dwc_pwc][_se]`. Other P and G are legal, too."""

def state_in_onnx(path: str, description: str) -> None: ...
def read_model(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None
) -> tuple[str, dict[str, tuple[list[int], bytes]]]: ...
def write_model(
    path: str | os.PathLike[str], description: str, tensors: dict[str, tuple[list[int], bytes]]
) -> None: ...
def use_openmp(address: int) -> None: ...
