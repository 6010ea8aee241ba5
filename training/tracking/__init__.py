"""MLflow: runs and the model registry. The only place that imports it.

One process writes: the driver. Workers never speak to the tracking server; they hand their points to the driver.
A bundle is registered through MLflow's logged-model calls, which store the folder as it is: no flavour, no pickle.

`server` is the connection, `runs` what is logged while something trains, `registry` the versions and their aliases,
`lineage` which pictures they were made from, and `attached` what comes to a version later.
"""

from training.tracking.attached import attach_export, export_of, log_evaluation
from training.tracking.lineage import training_set
from training.tracking.registry import (
    DEFAULT_ALIAS,
    ModelVersion,
    check_alias,
    find,
    info_of,
    only_model,
    register,
    resolve,
    set_alias,
    tag_version,
    versions,
)
from training.tracking.runs import (
    Run,
    RunRecord,
    experiment_of,
    images_of_run,
    knows_run,
    roster_tags,
    runs,
    runs_of,
)
from training.tracking.server import DEFAULT_EXPERIMENT, DEFAULT_URI, tracking_uri

__all__ = [
    "DEFAULT_ALIAS",
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "ModelVersion",
    "Run",
    "RunRecord",
    "attach_export",
    "check_alias",
    "experiment_of",
    "export_of",
    "find",
    "images_of_run",
    "info_of",
    "knows_run",
    "log_evaluation",
    "only_model",
    "register",
    "resolve",
    "roster_tags",
    "runs",
    "runs_of",
    "set_alias",
    "tag_version",
    "tracking_uri",
    "training_set",
    "versions",
]
