"""Checks of what users pass in, with errors that name the argument."""
