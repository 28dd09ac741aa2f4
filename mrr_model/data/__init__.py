"""Files, libraries and hub datasets to rows and collections, for training and evaluation alike."""
