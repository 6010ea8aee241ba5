"""An environment of its own for every peer, with the versions that were compared: made once, kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from curation import torchvision_ops

# torch is named where a peer asks for any: this version has a CPU build where only that is offered. Data-Juicer imports
# aiohttp without asking for it, and installs imagededup, which its image_deduplicator is made of, when it first runs.
_TORCH = ("torch==2.13.0", "torchvision==0.28.0")
REQUIREMENTS = {
    "img2dataset": ("img2dataset==1.47.0",),
    "imagededup": ("imagededup==0.3.3.post2", *_TORCH),
    "data_juicer": ("py-data-juicer==1.6.1", "imagededup==0.3.3.post2", "aiohttp", *_TORCH),
}


def environment(cache: Path, peer: str, requirements: Sequence[str] = ()) -> Path:
    """The `bin` folder of a peer's environment; `requirements` are for a peer that is not in `REQUIREMENTS`."""
    folder = cache / "envs" / peer
    wanted = "\n".join(requirements or REQUIREMENTS[peer])
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {wanted.splitlines()[0]} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", *wanted.splitlines()]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        _mend_torchvision(folder / "bin" / "python")
        done.write_text(wanted)
    return folder / "bin"


def _mend_torchvision(python: Path) -> None:
    """imagededup imports torchvision, also for hashes: see `curation.torchvision_ops` for what a CPU torch wants."""
    broken = "import torch, torchvision"
    if subprocess.run([str(python), "-c", broken], capture_output=True, check=False).returncode == 0:
        return
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(
        subprocess.run([str(python), "-c", where], capture_output=True, check=True, text=True).stdout.strip()
    )
    shutil.copy(torchvision_ops.__file__, packages / "cleanplate_torchvision_ops.py")
    hook = "import cleanplate_torchvision_ops; cleanplate_torchvision_ops.hook()\n"
    (packages / "cleanplate_torchvision.pth").write_text(hook)
