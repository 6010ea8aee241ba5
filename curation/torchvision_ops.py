"""Makes `import torchvision` work beside a CPU build of torch.

The wheel of torchvision on PyPI is built against CUDA torch. Its compiled operators do not load beside a CPU torch,
and then `import torchvision` fails where it registers fake kernels for operators that do not exist. open_clip, timm and
diffusers import torchvision only for Python code (transforms), so declaring the missing operators is enough.

Our code calls `declare()` before it imports any of them. `main()`, which `make setup` calls, does the same for
everything else in the environment, so that plain diffusers loads our bundles there too.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[object] = []  # keeps the Library object alive: dropping it removes its operators


def declare() -> None:
    """Declares torchvision's operator schemas where its compiled extension could not. Safe to call often."""
    import torch

    if "torchvision" in sys.modules or _declared:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    # A CUDA build fails to load beside a CPU torch: the case to mend. A build that loads defines its own operators.
    with contextlib.suppress(OSError, RuntimeError):
        for extension in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
            torch.ops.load_library(str(extension))
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators when somebody looks for torchvision."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare()


def hook() -> None:
    """Declares the operators when torchvision is first imported, by whomever. Costs nothing until then."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def main() -> None:
    """Puts `hook` into this environment's start-up, if `import torchvision` fails in it."""
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0:
        return
    start_up = Path(sysconfig.get_path("purelib")) / "cleanplate_torchvision.pth"
    code = "try:\\n import curation.torchvision_ops as t; t.hook()\\nexcept ImportError: pass"
    start_up.write_text(f'import sys; exec("{code}")\n')
