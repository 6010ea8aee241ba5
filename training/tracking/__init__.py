"""MLflow: runs and the model registry. The only place that imports it.

One process writes: the driver. Workers never speak to the tracking server; they hand their points to the driver.
A bundle is registered through MLflow's logged-model calls, which store the folder as it is: no flavour, no pickle.

`server` is the connection, `runs` what is logged while something trains, `registry` the versions and their aliases,
`lineage` which pictures they were made from, and `attached` what comes to a version later.
"""

from training.tracking.attached import (
    attach_export,
    attach_neighbours,
    export_of,
    log_evaluation,
    neighbours_of,
)
from training.tracking.lineage import dependencies_of, dependency_set, rosters_of, training_set, walk
from training.tracking.registry import (
    DEFAULT_ALIAS,
    ModelVersion,
    check_alias,
    find,
    info_of,
    is_registered,
    only_model,
    register,
    resolve,
    set_alias,
    tag_version,
    versions,
    versions_of_bundle,
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
from training.tracking.server import DEFAULT_EXPERIMENT, DEFAULT_URI, is_missing, tracking_uri

__all__ = [
    "DEFAULT_ALIAS",
    "DEFAULT_EXPERIMENT",
    "DEFAULT_URI",
    "ModelVersion",
    "Run",
    "RunRecord",
    "attach_export",
    "attach_neighbours",
    "check_alias",
    "dependencies_of",
    "dependency_set",
    "experiment_of",
    "export_of",
    "find",
    "images_of_run",
    "info_of",
    "is_missing",
    "is_registered",
    "knows_run",
    "log_evaluation",
    "neighbours_of",
    "only_model",
    "register",
    "resolve",
    "roster_tags",
    "rosters_of",
    "runs",
    "runs_of",
    "set_alias",
    "tag_version",
    "tracking_uri",
    "training_set",
    "versions",
    "versions_of_bundle",
    "walk",
]
