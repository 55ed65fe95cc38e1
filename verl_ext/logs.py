"""Warnings of a package, printed in every process."""

import logging
import os
import sys

from verl_ext.texts import visible


class VisibleFormatter(logging.Formatter):
    """Formatter of lines in which nothing moves a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        return visible(super().format(record))


def isolate(package: str) -> None:
    """Give a package's loggers a handler and a level of their own, as verl does with its own.

    In Ray's workers the root logger is at ERROR by the time training starts, set by some library;
    warnings that rely on it are lost. ``VERL_LOGGING_LEVEL`` is verl's variable for the level;
    without it WARNING.

    Args:
        package: name of the loggers' parent.
    """
    level = os.getenv("VERL_LOGGING_LEVEL", "WARNING")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(levelname)s:%(asctime)s:%(message)s"))
    logger = logging.getLogger(package)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
