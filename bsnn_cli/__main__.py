"""`python -m bsnn_cli` is the same as `bsnn`."""

from bsnn_cli.cli import main

if __name__ == "__main__":
    main()
