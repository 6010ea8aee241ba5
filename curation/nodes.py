"""The nodes of the Ray cluster that this process is connected to."""

from __future__ import annotations

import sys
import warnings
from typing import Any

CPU_NODE, GPU_NODE = "cpu_node", "gpu_node"
_asked = False  # in this process
_GROUPS = ("ray.io/node-group", "ray.io/accelerator-type")


def alive() -> dict[str, str]:
    """The kind of each node that is alive, by its id: its group in the cluster, or what there is to tell it by."""
    ray = _connected()
    if ray is None:
        return {}
    return {node["NodeID"]: _kind(node) for node in ray.nodes() if node["Alive"]}


def _connected() -> Any:
    """Ray, where this process is connected to a cluster; who is, has imported it."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def _kind(node: dict[str, Any]) -> str:
    labels = node.get("Labels", {})
    named = next((labels[group] for group in _GROUPS if labels.get(group)), None)
    return str(named) if named else GPU_NODE if node.get("Resources", {}).get("GPU") else CPU_NODE


def kind_of(gpus_per_worker: float) -> str:
    """The kind of node that such workers are on, where nobody says."""
    return GPU_NODE if gpus_per_worker else CPU_NODE


def where() -> tuple[str, int]:
    """The node that this worker is on, and 1 where it goes on with what another process of its actor had in its hands,
    else 0; outside of Ray ("", 0). To be asked once for each unit."""
    global _asked
    ray = _connected()
    if ray is None:
        return "", 0
    context = ray.get_runtime_context()
    first, _asked = not _asked, True
    try:
        with warnings.catch_warnings():  # it asks Ray in a way that Ray itself deprecates
            warnings.simplefilter("ignore")
            restarted = first and context.was_current_actor_reconstructed
    except Exception:  # no actor, or nobody who would know
        restarted = False
    return context.get_node_id(), int(restarted)
