"""Makes the picture of labels.md from the page itself, in Chromium by WebDriver (as
tests/test_edit_page.py).

python docs/edit_pictures.py tomo.h5 [http://127.0.0.1:9515]      (with labels and probabilities; it
is copied)
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType

from anacor_dials.jobs.editing import EditingSettings, LabelEditor
from anacor_dials.report.edit_server import EditServer

DOCS = Path(__file__).parent


def page_tests() -> ModuleType:
    """The tests of the page, which hold the browser."""
    spec = importlib.util.spec_from_file_location("page", DOCS.parent / "tests/test_edit_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(given: Path, driver: str) -> None:
    tests = page_tests()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(given, Path(folder) / "tomo.h5"))
        server = EditServer(LabelEditor(path, EditingSettings(user="expert")))
        threading.Thread(target=server.run, daemon=True).start()
        browser = tests.Browser(driver)
        try:
            browser.open(server.address)
            browser.wait(tests.READY)
            browser.wait("return document.getElementById('rms')")
            browser.click("#show-doubt")
            browser.click("#draw3d")
            browser.wait("return document.getElementById('view3d').dataset.drawn")
            browser.key("4")  # the brush: liquor at the worst place
            x, y, z = browser.run("return cross")
            browser.run("chooseLabel(1)")
            browser.drag(
                [tests.on_screen(browser, 0, y, z - 12), tests.on_screen(browser, 0, y - 12, z - 4)]
            )
            browser.wait(tests.STEPS, 1)
            time.sleep(20)  # until what it is worth has been found
            (DOCS / "pictures" / "edit-page.png").write_bytes(browser.picture())
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:9515")
