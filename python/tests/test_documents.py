"""The stubs say what there is, and the examples in the documents run."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import hetconv
from hetconv import _native

ROOT = Path(__file__).resolve().parents[1]


def test_stubs_name_what_the_module_has():
    stub = ast.parse((Path(hetconv.__file__).parent / "_native.pyi").read_text())
    found = {}
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = None
    assert set(found) == {name for name in dir(_native) if not name.startswith("__")}
    for name in ("Layer", "Runtime"):
        members = {member for member in vars(getattr(_native, name)) if not member.startswith("__")}
        assert found[name] - {"__init__"} == members


@pytest.mark.filterwarnings("ignore")
def test_the_example_in_the_readme(tmp_path, monkeypatch):
    for name in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    import torch

    expected = names["model"].eval()(names["images"]).detach()
    torch.testing.assert_close(torch.tensor(names["result"]), expected, rtol=1e-4, atol=1e-4)
