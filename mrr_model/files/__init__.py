"""Files that are written whole, folders with one writer, and one error for a damaged file."""
