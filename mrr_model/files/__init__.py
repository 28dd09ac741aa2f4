"""Files that are written completely or not at all, folders with one writer, one error for a damaged file."""
