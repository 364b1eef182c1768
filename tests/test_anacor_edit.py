"""dials.anacor_edit from its command line; the page itself is tested in test_edit_page.py."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from anacor_dials.sample.tomogram_files import write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

pytest.importorskip("dials.util.options", reason="DIALS is not installed")

from dials.util import Sorry

from anacor_dials.command_line import anacor_edit
from anacor_dials.report.edit_server import EditServer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((20, 22, 24), dtype=np.uint8)
    labels[4:16, 4:18, 4:20] = 1
    labels[8:12, 8:13, 8:15] = 3
    values = 0.012 * np.array([0.0, 1.0, 0.6, 1.5])[labels]
    values += 1e-5 * np.random.default_rng(0).standard_normal(labels.shape)
    write_sample_file("tomo.h5", Tomogram(values, 1.2), LabelVolume(labels, 1.2))
    write_sample_file("bare.h5", Tomogram(values, 1.2))
    return tmp_path


@pytest.fixture
def served(monkeypatch):
    """The servers that were run; they end at once."""
    servers = []
    monkeypatch.setattr(EditServer, "run", lambda self: servers.append(self))
    yield servers
    for server in servers:
        server._http.server_close()


def test_what_is_typed_to_see_the_page(folder, served, capsys):
    anacor_edit.run(["tomo.h5", "browser=False", "user=anna", "follow.reach=5", "learn.minutes=1"])
    (server,) = served
    printed = capsys.readouterr().out
    assert server.address in printed
    assert f"ssh -L {server.port}:127.0.0.1:{server.port}" in printed
    # the token is in no file
    log = Path("anacor_edit.log").read_text()
    assert str(server.port) in log
    assert server.token not in log
    editor = server.editor
    assert editor.sessions[-1].user == "anna"
    assert editor.settings.propagation.reach == 5
    assert editor.settings.segmentation.learning.minutes == 1


def test_the_browser_is_led_to_the_page(folder, served, monkeypatch):
    """Through a file that only the user can read."""
    seen = []

    def opened(address):
        file = Path(unquote(urlsplit(address).path))
        seen.append((file, file.read_text(), file.stat().st_mode & 0o777))

    monkeypatch.setattr(anacor_edit.webbrowser, "open", opened)
    anacor_edit.run(["tomo.h5"])
    ((file, text, mode),) = seen
    assert served[0].address in text
    assert mode == 0o600
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["bare.h5"], "no labels yet"),
        (["absent.h5"], "absent.h5"),
        (["tomo.h5", "bare.h5"], "One tomo.h5 at a time"),
        (["tomo.h5", "segmentation.axes=xw"], "axes"),
        (["tomo.h5", "raech=3"], "did you mean"),
    ],
)
def test_bad_input_is_one_sentence(folder, served, arguments, what):
    before = Path("tomo.h5").read_bytes()
    with pytest.raises(Sorry, match=what):
        anacor_edit.run([*arguments, "browser=False"])
    assert Path("tomo.h5").read_bytes() == before
    assert not served
