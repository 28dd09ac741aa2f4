"""What the ``mrr`` script and ``python -m mrr_model`` run; torchrun and accelerate start modules."""

import sys


def main() -> None:
    """Run the command line. It is imported inside, so that Ctrl-C is quiet from the first moment."""
    try:
        from mrr_model.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
