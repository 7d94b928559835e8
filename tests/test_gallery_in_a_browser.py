"""The gallery in a real browser: no errors, no request leaves the machine, every link leads somewhere."""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


@pytest.fixture
def gallery(coin_package, tmp_path):
    symdyn = str(Path(sys.executable).with_name("symdyn"))
    subprocess.run([symdyn, "run", "coin"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([symdyn, "gallery"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_gallery(gallery, width):
    from playwright.sync_api import sync_playwright

    problems, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        for path in sorted(gallery.glob("*.html")):
            page.goto(path.as_uri())
            overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, f"{path.name} scrolls sideways by {overflow} px at width {width}"
            for link in page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
                target = urlparse(link)
                if target.scheme == "file":
                    assert Path(target.path).exists(), f"{path.name} links to {link}"
                else:
                    assert link.startswith("https://arxiv.org/abs/"), f"{path.name} links to {link}"
        page.goto((gallery / "index.html").as_uri())
        page.click("text=A biased coin")
        assert page.locator("h1").inner_text() == "A biased coin"
        assert page.locator(".figure svg").count() == 1
        browser.close()
    assert not problems
    assert all(urlparse(url).scheme in ("file", "data") for url in requests)
