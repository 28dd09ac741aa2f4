"""``python -m mrr_model`` is ``mrr``; torchrun and accelerate start modules."""

from mrr_model.cli import main

if __name__ == "__main__":
    main()
