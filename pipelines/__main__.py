"""`python -m pipelines` is the command `cleanplate`, from a checkout that nothing was installed from."""

from pipelines.cli import main

main()
