"""cleanplate beside img2dataset, Data-Juicer and imagededup on this machine: `python -m tests.bench.peers`."""
