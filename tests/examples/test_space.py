"""The Gradio app of examples/space in a real browser."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import ROOT, TINY, digit_images, free_port, run_example
from PIL import Image

from supmae_hf.preparation import IMAGENET_MEAN


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="needs gradio: pip install '.[dev]'")
gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One that was just trained."""
    folder = tmp_path_factory.mktemp("space")
    flags = ["--model_config", json.dumps(TINY), "--output_dir", folder / "model", "--save_strategy", "no"]
    flags += ["--max_train_samples", 64, "--max_eval_samples", 40, "--num_train_epochs", 1, "--warmup_epochs", 0]
    run_example("run_pretrain.py", *flags, "--widget_images", "True", cwd=folder)
    return folder / "model"


@pytest.fixture(scope="module")
def app(checkpoint):
    """Address of the app with that checkpoint."""
    folder = checkpoint.parent
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_reconstructs_what_is_uploaded(app, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
    digit_images(4)[3].convert("RGB").resize((64, 64)).save(tmp_path / "digit.png")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(app, wait_until="domcontentloaded")
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "digit.png"))
        page.locator('img[src*="digit"]').first.wait_for()
        page.get_by_role("button", name="Reconstruct").click()
        page.locator('img[src*="image.png"]').nth(1).wait_for(timeout=60_000)
        page.get_by_text("%").first.wait_for()
        pictures = [
            Image.open(io.BytesIO(page.request.get(image.get_attribute("src")).body())).convert("RGB")
            for image in page.locator('img[src*="image.png"]').all()[:2]
        ]
        page.screenshot(path=os.environ.get("SPACE_SCREENSHOT", str(tmp_path / "page.png")), full_page=True)
        assert page.get_by_text("in the brightness and contrast of the visible patches around").count() > 0
        browser.close()
    masked, reconstruction = (np.asarray(picture, dtype=int) for picture in pictures)
    mean_color = np.round(np.array(IMAGENET_MEAN) * 255)
    hidden = (np.abs(masked - mean_color) <= 1).all(axis=-1)
    assert hidden.mean() == pytest.approx(0.75, abs=0.01)  # 12 of 16 patches
    assert (masked[~hidden] == reconstruction[~hidden]).all()
    assert (masked[hidden] != reconstruction[hidden]).mean() > 0.5


def status(url: str) -> int:
    try:
        return urllib.request.urlopen(url).status
    except urllib.error.HTTPError as error:
        return error.code


def test_serves_nothing_but_examples(app, checkpoint):
    (example,) = sorted((checkpoint / "widget").glob("*.png"))[:1]
    assert status(f"{app}/gradio_api/file={example}") == 200
    files = [path for path in checkpoint.iterdir() if path.is_file()]
    assert {"config.json", "model.safetensors", "training_args.bin"} <= {path.name for path in files}
    for path in [*files, checkpoint / "widget" / ".." / "config.json", checkpoint.parent / "log", "/etc/hostname"]:
        assert status(f"{app}/gradio_api/file={path}") in (403, 404), path


def test_requests_keep_their_state_to_themselves(app, tmp_path):
    digit_images(4)[3].convert("RGB").resize((64, 64)).save(tmp_path / "digit.png")
    client = gradio_client.Client(app, verbose=False, download_files=str(tmp_path / "downloads"))

    def masked(ratio: float) -> np.ndarray:
        results = client.predict(gradio_client.handle_file(tmp_path / "digit.png"), ratio, 0, api_name="/reconstruct")
        return np.asarray(Image.open(results[0]))

    first = masked(0.75)
    assert not np.array_equal(first, masked(0.25))
    assert np.array_equal(first, masked(0.75))
    asked = [
        client.submit(gradio_client.handle_file(tmp_path / "digit.png"), ratio, 0, api_name="/reconstruct")
        for ratio in 8 * (0.75, 0.0)
    ]
    pictures = [np.asarray(Image.open(job.result()[0])) for job in asked]
    assert all(np.array_equal(first, picture) for picture in pictures[::2])


def test_uploads_are_limited(app, tmp_path):
    (tmp_path / "big.png").write_bytes(bytes(21 * 1024 * 1024))
    Image.new("L", (7000, 6000)).save(tmp_path / "bomb.png")
    with open(tmp_path / "big.png", "rb") as file:
        assert httpx.post(f"{app}/gradio_api/upload", files={"files": file}).status_code == 413
    client = gradio_client.Client(app, verbose=False, download_files=str(tmp_path / "downloads"))
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(gradio_client.handle_file(tmp_path / "bomb.png"), 0.75, 0, api_name="/reconstruct")
    digit_images(4)[3].save(tmp_path / "digit.png")
    client.predict(gradio_client.handle_file(tmp_path / "digit.png"), 0.75, 0, api_name="/reconstruct")
