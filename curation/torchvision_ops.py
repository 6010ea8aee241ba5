"""Makes `import torchvision` work beside a CPU build of torch.

The wheel of torchvision on PyPI is built against CUDA torch. Its compiled operators do not load beside a CPU torch,
and then `import torchvision` fails where it registers fake kernels for operators that do not exist. open_clip and timm
import torchvision only for Python code (transforms), so declaring the missing operators is enough. Call `declare()`
before importing either of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[object] = []  # keeps the Library objects alive: dropping one removes its operators


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
