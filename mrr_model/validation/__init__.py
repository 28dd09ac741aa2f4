"""Checks of arguments and configs, with errors in plain words."""
