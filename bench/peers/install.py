"""Installs the peers into an environment of their own, `.venv` beside this file, when `requirements.txt` has changed.

PyTorch's usual package for Linux is its CUDA build: its libraries refuse to load without CUDA's, two gigabytes that no
computation on the CPU ever calls. So packages are installed without their dependencies (`requirements.txt` names all of
them), and one library that has the missing names and does nothing stands in for what is absent.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"


def python():
    """The environment's interpreter; the environment is made if it is not there or not up to date."""
    requirements = HERE / "requirements.txt"
    stamp = VENV / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return str(PYTHON)
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-warn-conflicts"]
    subprocess.run([*pip, "--requirement", requirements], check=True, stdout=sys.stderr)
    (site,) = VENV.glob("lib/python*/site-packages")
    stand_in(site)
    stamp.write_text(requirements.read_text())
    return str(PYTHON)


def stand_in(site):
    """Builds the stand-in for the CUDA libraries that PyTorch's libraries name and that are not installed."""
    libraries = site / "torch" / "lib"
    needed, by_version, unversioned, defined = set(), defaultdict(set), set(), set()
    for library in libraries.glob("*.so"):
        needed.update(re.findall(r"NEEDED.*\[(.*)\]", readelf("--dynamic", library)))
        for line in readelf("--dyn-syms", library).splitlines():
            fields = line.split()
            name, _, version = fields[7].partition("@") if len(fields) > 7 else ("", "", "")
            if len(fields) > 7 and fields[6] != "UND":
                defined.add(name)
            elif version:
                by_version[version].add(name)
            else:
                unversioned.add(name)
    absent = [name for name in needed if re.match("lib(cu|nv|nccl)", name) and not [*site.glob(f"nvidia/*/lib/{name}")]]
    if not absent:
        return
    versions = {tag: sorted(names) for tag, names in by_version.items() if tag in absent or tag == "NVSHMEM"}
    plain = [name for name in unversioned - defined if re.match("cu|nccl", name)]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "absent.c"), Path(folder, "absent.map")
        source.write_text("".join(f"int {name};\n" for name in sum(versions.values(), sorted(plain))))
        script.write_text("".join(f"{tag} {{ {'; '.join(names)}; }};\n" for tag, names in versions.items()))
        library = libraries / "libabsent.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, f"-Wl,--version-script={script}"], check=True)
    for name in absent:
        (libraries / name).symlink_to(library.name)


def readelf(option, library):
    """What readelf says about a library."""
    return subprocess.run(["readelf", "--wide", option, library], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(python())
