"""A report in a browser: axe-core finds no violation, at three sizes, light and dark.

AXE_CORE names axe.min.js (`npm pack axe-core`).
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from mistjax.report import build_report
from mistjax.report.blocks import Words

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = Path(os.environ.get("AXE_CORE", "/no/axe.min.js"))
RUN = """<script>axe.run().then((found) => {
  const said = found.violations.map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 200))]);
  document.body.insertAdjacentHTML("beforeend", "<pre id=axe></pre>");
  document.getElementById("axe").textContent = JSON.stringify([found.passes.length, said]);
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and AXE.exists()), reason="needs Chromium and axe-core")
@pytest.mark.parametrize("size", ["1280,900", "820,1180", "390,844"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation(size, theme, run_folder, tmp_path):
    runs = {
        "bare": run_folder("bare", [False, False, True], monitored=False),
        "ours": run_folder("ours", [True, False, True], monitored=True),
    }
    page = build_report(runs, tmp_path / "report.html", title="Trial").read_text()
    page = page.replace("<html ", f'<html data-theme="{theme}" ')
    words = Words([(f"word{i}", i / 10) for i in range(-1, 11)]).html("words")  # of explanations
    page = page.replace("</main>", words + "</main>")
    assert words in page
    script = f"<script>{AXE.read_text()}</script>{RUN}"
    (tmp_path / "page.html").write_text(page.replace("</body>", script + "</body>"))
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=20000", f"--window-size={size}"),
            f"--user-data-dir={tmp_path / 'profile'}",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said, done.stderr[-500:]
    passes, violations = json.loads(unescape(said[1]))
    assert passes > 10 and violations == []
