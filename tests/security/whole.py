"""From pictures to a served one, in one process and one cluster: `python -m tests.security.whole FOLDER PORT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipelines import cluster, config


def main(folder: Path, port: int) -> None:
    cluster.authenticate()
    from pipelines import curate, register, serve, train

    source = {"kind": "table", "path": str(folder / "pictures.csv")}
    curating = config.build(
        {
            **{"kind": "curate", "name": "drawings", "source": source, "output": str(folder / "manifests")},
            **{"licences": {"unstated": "keep"}, "captions": [{"kind": "template", "text": "noise"}]},
            **{"image_size": 16, "fetch": {"allow_private": True, "retries": 0}},
        }
    )
    with cluster.connect(cpus=3):
        curated = curate.run(curating)
        training = config.build(
            {
                **{"kind": "train", "name": "drawings", "manifest": curated.manifest, "patch_size": 2, "workers": 0},
                **{"output": str(folder / "training"), "images": 8, "batch_size": 4, "sample": {"steps": 2}},
                "network": {"block_out_channels": [32, 32], "layers_per_block": 1, "attention_heads": 2},
            }
        )
        trained = train.run(training)
        register.run(
            config.build({"kind": "register", "name": "drawings", "bundle": trained.bundle, "run_id": trained.run_id})
        )
        keys = folder / "keys.json"
        serving: dict[str, Any] = {
            **{"kind": "serve", "model": "models:/drawings@champion", "port": port, "keys": {"file": str(keys)}},
            **{"safety": {"concepts": {}}, "observability": {"log_file": str(folder / "serve.jsonl")}},
        }
        with serve.endpoint(config.build(serving)) as url:
            sys.stdout.write(url + "\n")
            sys.stdout.flush()
            sys.stdin.readline()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
