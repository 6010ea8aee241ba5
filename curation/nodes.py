"""The nodes of the Ray cluster that this process is connected to."""

from __future__ import annotations

import sys
from typing import Any

CPU_NODE, GPU_NODE = "cpu_node", "gpu_node"
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


def where() -> tuple[str, int]:
    """The node that this worker is on, and which attempt at its task this is, from 0; outside of Ray ("", 0)."""
    ray = _connected()
    if ray is None:
        return "", 0
    context = ray.get_runtime_context()
    # Ray shows the number in its dashboard and nowhere in its public interface
    core = getattr(context.worker, "core_worker", None)
    count = getattr(core, "get_current_task_attempt_number", None)
    return context.get_node_id(), int(count()) if count is not None else 0
