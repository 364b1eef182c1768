"""The server of the page: what it gives to the page, and that nobody else gets anything."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

from anacor_dials.jobs.editing import LabelEditor
from anacor_dials.jobs.label_preview import LabelPreview
from anacor_dials.report.edit_server import GREY, EditServer
from anacor_dials.sample import previews
from anacor_dials.sample.tomogram_files import read_preview, read_sample_file, write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

SHAPE = (12, 14, 16)


@pytest.fixture
def labels():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:10, 2:12, 2:14] = 1
    labels[4:8, 4:9, 5:12] = 3
    return labels


@pytest.fixture
def server(tmp_path, labels):
    values = 0.012 * np.array([0.0, 1.0, 0.6, 1.5])[labels] + 1e-5 * np.random.default_rng(
        0
    ).standard_normal(SHAPE)
    path = tmp_path / "tomo.h5"
    write_sample_file(
        path, Tomogram(values, 1.2), LabelVolume(labels, 1.2), [0, 0.012, 0.007, 0.018]
    )
    server = EditServer(LabelEditor(path))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(10)


def ask(server, path, method="GET", body=None, **headers):
    """(status, headers, content) of a request to the server; path: after the token."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    whole = path if path.startswith("//") else f"/{server.token}/{path}"
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    if body is not None:
        sent.setdefault("Content-Type", "application/json")
        body = json.dumps(body)
    connection.request(method, whole.replace("//", "/", 1), body, sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_the_page_and_its_parts(server):
    for path, kind in (
        ("", "text/html"),
        ("edit.js", "text/javascript"),
        ("state", "application/json"),
    ):
        status, headers, content = ask(server, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert content
    state = json.loads(ask(server, "state")[2])
    assert state["shape"] == list(SHAPE)
    assert state["names"] == ["background", "liquor", "loop", "crystal"]


def test_slices_are_numbers(server, labels):
    for axis in range(3):
        status, headers, content = ask(server, f"slice?kind=labels&axis={axis}&index=6")
        assert status == 200
        expected = np.moveaxis(labels, axis, 0)[6]
        assert headers["X-Shape"] == f"{expected.shape[0]},{expected.shape[1]}"
        np.testing.assert_array_equal(
            np.frombuffer(content, np.uint8).reshape(expected.shape), expected
        )
    content = ask(server, "slice?kind=values&axis=0&index=6")[2]
    grey = (
        np.frombuffer(content, "<u2").reshape(SHAPE[1:]) * ((GREY[1] - GREY[0]) / 65535) + GREY[0]
    )
    assert grey[0, 0] == pytest.approx(0, abs=0.01)
    assert np.median(grey[labels[6] == 1]) == pytest.approx(
        np.median(server.editor.normalised(6)[labels[6] == 1]), abs=1e-3
    )
    for bad in ("axis=0&index=99", "axis=7&index=0", "index=3", "axis=0&index=x"):
        assert ask(server, f"slice?kind=labels&{bad}")[0] == 400


def test_what_is_painted_is_saved(server, labels):
    request = {"axis": 0, "index": 6, "label": 2, "runs": [33, 3, 65, 1]}
    status, _, content = ask(server, "paint", "POST", request)
    assert status == 200
    answer = json.loads(content)
    assert answer["changed"] == 4
    assert answer["state"]["by_hand"] == 4
    stored = read_sample_file(server.editor.path).labels.values
    expected = labels.copy()
    expected[6].reshape(-1)[[33, 34, 35, 65]] = 2
    np.testing.assert_array_equal(stored, expected)
    assert json.loads(ask(server, "erase", "POST", {**request, "runs": [33, 1]})[2])["changed"] == 1
    assert (
        read_sample_file(server.editor.path).labels.values[6].ravel()[33] == labels[6].ravel()[33]
    )
    assert ask(server, "undo", "POST", {})[0] == 200
    assert ask(server, "undo", "POST", {})[0] == 200
    status, _, content = ask(server, "undo", "POST", {})
    assert status == 400
    assert "nothing to undo" in json.loads(content)["error"]


def test_what_a_change_is_worth_comes_later(server):
    ask(server, "paint", "POST", {"axis": 0, "index": 6, "label": 1, "runs": [70, 4]})
    ask(server, "effect", "POST", {})
    for _ in range(600):
        state = json.loads(ask(server, "state")[2])
        if state["effect"]:
            break
        time.sleep(0.1)
    assert len(state["effect"]["factors_now"]) == 200
    assert state["effect"]["volumes_now"][3] < state["effect"]["volumes_before"][3]


def test_follow_without_strokes_says_so(server):
    ask(server, "follow", "POST", {})
    for _ in range(600):
        state = json.loads(ask(server, "state")[2])
        if not state["busy"]:
            break
        time.sleep(0.1)
    assert "draw first" in state["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_hostile_page_gets_nothing_even_with_the_token(server, headers):
    for path, method, body in (
        ("", "GET", None),
        ("slice?kind=labels&axis=0&index=6", "GET", None),
        ("paint", "POST", {"axis": 0, "index": 6, "label": 2, "runs": [33, 3]}),
    ):
        status, _, content = ask(server, path, method, body, **headers)
        assert (status, content) == (404, b"")
    assert server.editor.done == []


@pytest.mark.parametrize(
    "path", ["//", "//state", "//x/state", "//é/state", "//../etc/passwd", "//x"]
)
def test_without_the_token_nobody_gets_anything(server, path):
    from urllib.parse import quote

    for method, body in (("GET", None), ("POST", {})):
        status, _, content = ask(server, quote(path), method, body)
        assert (status, content) == (404, b"")


def test_other_requests_are_refused(server):
    form = {"axis": 0, "index": 6, "label": 2, "runs": [33, 3]}
    assert ask(server, "paint", "POST", form, Content_Type="text/plain")[0] == 404
    assert ask(server, "no/such/thing")[0] == 404
    assert ask(server, "edit.html")[0] == 404
    assert ask(server, "format_disk", "POST", {})[0] == 400
    for bad in (
        {"axis": 0},
        {**form, "runs": [1, -5]},
        {**form, "runs": [1]},
        {**form, "label": 77},
    ):
        assert ask(server, "paint", "POST", bad)[0] == 400
    assert server.editor.done == []


def test_nothing_listens_elsewhere(server):
    """The socket is bound to the loopback address: other addresses of this machine refuse."""
    assert server._http.server_address[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        with pytest.raises(OSError):
            probe.connect(("127.0.0.2", server.port))


def test_a_port_that_is_taken(server):
    with pytest.raises(ValueError, match="cannot be used"):
        EditServer(server.editor, server.port)


def test_a_link_opens_the_page_but_not_within_another(server):
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, "", Sec_Fetch_Dest="document", **headers)[0] == 200
    assert ask(server, "", Sec_Fetch_Dest="iframe", **headers)[0] == 404
    assert ask(server, "undo", "POST", {}, Sec_Fetch_Dest="document", **headers)[0] == 404


def test_through_a_tunnel_with_another_port(server):
    """ssh -L 9999:...: the browser then names localhost:9999."""
    assert ask(server, "state", Host="localhost:9999")[0] == 200
    assert ask(server, "state", Host="localhost:9999", Origin="http://localhost:9999")[0] == 200
    assert ask(server, "state", Host="localhost:9999", Origin="http://localhost:1")[0] == 404


def test_a_large_volume_is_shown_at_reduced_size_while_it_is_read(tmp_path, labels, monkeypatch):
    """The page opens on the preview; nothing can be changed until the volume is there."""
    monkeypatch.setattr(previews, "LARGEST_WITHOUT", 1000)
    monkeypatch.setattr(previews, "VOXELS", labels.size / 8)
    values = 0.012 * np.array([0.0, 1.0, 0.6, 1.5])[labels]
    values += 1e-5 * np.random.default_rng(0).standard_normal(SHAPE)
    path = tmp_path / "tomo.h5"
    write_sample_file(path, Tomogram(values, 1.2), LabelVolume(labels, 1.2), np.full(4, 0.012))
    preview = read_preview(path)
    assert preview is not None
    server = EditServer(LabelPreview(preview, "somebody"))
    threading.Thread(target=server.run, daemon=True).start()
    go_on = threading.Event()

    def read():
        assert go_on.wait(30)
        return LabelEditor(path)

    server.open(read)
    try:
        state = json.loads(ask(server, "state")[2])
        assert (state["reading"], state["shape"], state["user"]) == (True, [6, 7, 8], "somebody")
        assert state["voxel_size_um"] == [2.4, 2.4, 2.4]
        status, headers, content = ask(server, "slice?kind=labels&axis=0&index=2")
        assert (status, headers["X-Shape"]) == (200, "7,8")
        found = np.frombuffer(content, np.uint8).reshape(7, 8)
        np.testing.assert_array_equal(found, labels[5, 1::2, 1::2])
        status, _, content = ask(server, "slice?kind=values&axis=1&index=3")
        low, high = GREY
        seen = np.frombuffer(content, "<u2").reshape(6, 8) / 65535 * (high - low) + low
        means = values.reshape(6, 2, 7, 2, 8, 2).mean(axis=(1, 3, 5))
        # air 0 and the sample 1, whatever its level is
        assert np.corrcoef(seen.ravel(), means[:, 3].ravel())[0, 1] > 0.9999
        request = {"axis": 0, "index": 2, "label": 1, "runs": [[3, 2]]}
        status, _, content = ask(server, "paint", "POST", request)
        assert status == 400
        assert "being read" in json.loads(content)["error"]
        go_on.set()
        for _ in range(100):
            state = json.loads(ask(server, "state")[2])
            if not state["reading"]:
                break
            time.sleep(0.05)
        assert (state["reading"], state["shape"], state["busy"]) == (False, list(SHAPE), "")
        # what is drawn is in the preview that is shown the next time
        runs = [[5 * SHAPE[2] + 5, 1]]
        status, _, _ = ask(
            server, "paint", "POST", {"axis": 0, "index": 5, "label": 2, "runs": runs}
        )
        assert status == 200
        again = read_preview(path)
        assert again.labels.values[2, 2, 2] == 2
        assert labels[5, 5, 5] == 3
    finally:
        server.stop()


def test_a_volume_that_cannot_be_read_ends_the_page(tmp_path, labels, monkeypatch):
    monkeypatch.setattr(previews, "LARGEST_WITHOUT", 1000)
    path = tmp_path / "tomo.h5"
    write_sample_file(path, Tomogram(labels * 0.01, 1.2), LabelVolume(labels, 1.2), np.ones(4))
    server = EditServer(LabelPreview(read_preview(path)))

    def read():
        raise ValueError("it is damaged")

    server.open(read)
    thread = threading.Thread(target=server.run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert str(server.failure) == "it is damaged"
