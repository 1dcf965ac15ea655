"""The Gradio app of examples/space in a real browser."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from conftest import ROOT, TINY, digit_images, free_port, run_example
from PIL import Image

from supmae_hf.data.transforms import IMAGENET_MEAN


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="needs gradio: pip install '.[dev]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
if CHROMIUM is None:
    pytest.skip("needs a browser: apt-get install chromium", allow_module_level=True)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Address of the app with a checkpoint that was just trained."""
    folder = tmp_path_factory.mktemp("space")
    flags = ["--model_config", json.dumps(TINY), "--output_dir", folder / "model", "--save_strategy", "no"]
    flags += ["--max_train_samples", 64, "--max_eval_samples", 40, "--num_train_epochs", 1, "--warmup_epochs", 0]
    run_example("run_pretrain.py", *flags, cwd=folder)
    url = f"http://127.0.0.1:{free_port()}"
    environment = {**os.environ, "CHECKPOINT": str(folder / "model"), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.update(GRADIO_SERVER_PORT=url.split(":")[-1], HF_HOME=str(folder / "home"), NO_PROXY="127.0.0.1")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "examples" / "space" / "app.py"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def test_reconstructs_what_is_uploaded(app, tmp_path):
    digit_images(4)[3].convert("RGB").resize((64, 64)).save(tmp_path / "digit.png")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(app, wait_until="domcontentloaded")
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "digit.png"))
        page.locator('img[src*="digit"]').first.wait_for()
        page.get_by_role("button", name="Reconstruct").click()
        page.locator('img[src*="image.png"]').nth(2).wait_for(timeout=60_000)
        page.get_by_text("%").first.wait_for()
        pictures = [
            Image.open(io.BytesIO(page.request.get(image.get_attribute("src")).body())).convert("RGB")
            for image in page.locator('img[src*="image.png"]').all()[:3]
        ]
        page.screenshot(path=os.environ.get("SPACE_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)
        assert page.get_by_text("reconstruction, visible pasted").count() > 0
        browser.close()
    masked, reconstruction, pasted = (np.asarray(picture, dtype=int) for picture in pictures)
    mean_color = np.round(np.array(IMAGENET_MEAN) * 255)
    hidden = (np.abs(masked - mean_color) <= 1).all(axis=-1)
    assert hidden.mean() == pytest.approx(0.75, abs=0.01)  # 12 of 16 patches
    assert (masked[~hidden] == pasted[~hidden]).all()
    assert (reconstruction[hidden] == pasted[hidden]).mean() > 0.99
