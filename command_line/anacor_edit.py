# LIBTBX_SET_DISPATCHER_NAME dials.anacor_edit
"""
Open a page in the browser on which the labels of a sample are put right.

The page shows three slices and a 3-D view, and steps through the places in which the network is
unsure, the worst first. Labels are drawn with a brush, a polygon and other tools; "Follow" carries
what was drawn into the neighbouring slices, and "Learn" lets the network learn from the slices that
were put right and label the rest anew. What a change is worth in volumes, mu and absorption factors
is shown at once.

Every step is saved into the file, with which voxels are by hand, by whom and when. No program
changes them afterwards. dials.anacor_absorption takes the file as it is.

The page is served to this machine alone (127.0.0.1), at an address that holds a random token. From
another machine it is reached through ssh; the line to type is printed. Ctrl-C ends it.

Examples::

  dials.anacor_edit tomo.h5

  dials.anacor_edit tomo.h5 port=8765 browser=False
"""

from __future__ import annotations

import dataclasses
import getpass
import logging
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dials.util import Sorry, show_mail_handle_errors
from dials.util.options import ArgumentParser
from libtbx import phil

from anacor_dials.command_line import begin_log
from anacor_dials.jobs.editing import EditingSettings, LabelEditor
from anacor_dials.jobs.label_preview import LabelPreview
from anacor_dials.phil import parse_phil
from anacor_dials.phil.arguments import parse_arguments
from anacor_dials.phil.settings import segmentation_settings
from anacor_dials.report.edit_server import EditServer
from anacor_dials.sample.tomogram_files import read_preview
from anacor_dials.segmentation.propagation import PropagationSettings

logger = logging.getLogger("dials.anacor_edit")

phil_scope = parse_phil("anacor_edit.phil")


def editing_settings(params: Any) -> EditingSettings:
    """The settings that the parameters ask for."""
    segmentation = segmentation_settings(params, keep_probabilities=True)
    learning = dataclasses.replace(segmentation.learning, minutes=params.learn.minutes)
    return EditingSettings(
        dataclasses.replace(segmentation, learning=learning, uncertainty=False),
        PropagationSettings(params.follow.reach, params.follow.stiffness),
        params.follow.sam2,
        params.user,
    )


def how_to_open(server: EditServer) -> list[str]:
    """What a person types to see the page, here and from another machine."""
    return [
        f"Open {server.address}",
        f"From another machine: ssh -L {server.port}:127.0.0.1:{server.port} "
        f"{getpass.getuser()}@{socket.gethostname()}, and open the same address there.",
        "Every step is saved. Ctrl-C ends it.",
    ]


@contextmanager
def opened_in_browser(address: str | None) -> Iterator[None]:
    """Within the block the page is open in this machine's browser, where there is one; not for
    None.

    The browser is given a file that only the user can read and that leads on to the page, since
    other users see the arguments of programs.
    """
    if address is None:
        yield
        return
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={address}">')
        file.flush()
        webbrowser.open(Path(file.name).as_uri())
        yield


@show_mail_handle_errors()
def run(args: list[str] | None = None, phil: phil.scope = phil_scope) -> None:
    """Run dials.anacor_edit as from the command line."""
    parser = ArgumentParser(
        usage="dials.anacor_edit [options] tomo.h5", phil=phil, check_format=False, epilog=__doc__
    )
    params, options, given = parse_arguments(parser, args)
    if not given:
        parser.print_help()
        sys.exit(1)
    begin_log(logger, parser, options, params.output.log)
    try:
        if len(given) > 1:
            raise ValueError(f"One tomo.h5 at a time: {', '.join(given)} were given.")
        settings = editing_settings(params)
        preview = read_preview(given[0])
        if preview is None:
            server = EditServer(LabelEditor(given[0], settings), params.port)
        else:
            server = EditServer(LabelPreview(preview, settings.user), params.port)
            server.open(lambda: LabelEditor(given[0], settings))
    except ValueError as error:
        raise Sorry(error) from None
    logger.info("The page is served on port %d", server.port)
    # the address holds the token: it is for the eyes of who types, and not for the log
    sys.stdout.write("".join(f"{line}\n" for line in how_to_open(server)))
    sys.stdout.flush()
    with opened_in_browser(server.address if params.browser else None):
        server.run()
    if server.failure is not None:
        raise Sorry(server.failure)


if __name__ == "__main__":
    run()
