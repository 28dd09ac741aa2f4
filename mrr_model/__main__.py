"""Entry point of the `mrr` script and of `python -m mrr_model`, which torchrun and accelerate can start."""

import sys


def main() -> None:
    """Run the command line. Its import is inside the `try`, so that Ctrl-C prints no traceback at start-up either."""
    try:
        from mrr_model.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
