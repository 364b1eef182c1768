"""The commands, one file each, and how they all begin."""

from __future__ import annotations

import logging
from typing import Any


def begin_log(logger: logging.Logger, parser: Any, options: Any, logfile: str | None) -> str:
    """The parameters that were changed, as PHIL text.

    Configures DIALS' logging (screen and logfile) and logs the versions and these parameters.
    parser is the command's ``dials.util.options.ArgumentParser`` after parsing, options its second
    result.
    """
    from dials.util import log
    from dials.util.version import dials_version

    from anacor_dials import __version__

    log.config(verbosity=options.verbose, logfile=logfile)
    logger.info("%s\nanacor_dials %s", dials_version(), __version__)
    changed: str = parser.diff_phil.as_str()
    if changed:
        logger.info("The following parameters have been modified:\n%s", changed)
    return changed
