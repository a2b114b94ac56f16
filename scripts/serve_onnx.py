"""Labels for images from an ONNX file of vit-export, with onnxruntime, Pillow and NumPy alone.

python scripts/serve_onnx.py model.onnx rose.jpg photos --top 3 > labels.csv
python scripts/serve_onnx.py model.onnx --port 8000  # curl --data-binary @rose.jpg localhost:8000
python scripts/serve_onnx.py model.onnx photos --set 95 --unknown 5

Copy it into your own program: what the model must see stands in the file's metadata, and `prepare`
makes it of an image, with the pixels that vit-train makes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet takes for a formula; it gets a `'`."""
MAX_PIXELS = 100_000_000
MAX_BYTES = 100_000_000
"""Of an image that is sent."""
DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What is raised where an image cannot be decoded."""
_ERRORS_ONLY = 3


class Classifier:
    """A model that knows its classes and how its images are prepared.

    Args:
        path: of the ONNX file.

    Raises:
        ValueError, KeyError, TypeError: its metadata are not those of vit-export; others of
            onnxruntime's: it is no ONNX file.
    """

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        self.session = onnxruntime.InferenceSession(
            path, options, providers=onnxruntime.get_available_providers()
        )
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes: list[str] = json.loads(metadata["classes"])
        self.preprocessing: dict[str, Any] = json.loads(metadata["preprocessing"])
        self.thresholds: list[float] | None = json.loads(metadata.get("thresholds", "null"))
        self.record: dict[str, Any] = json.loads(metadata.get("calibration", "null")) or {}
        self.temperature: float = self.record.get("temperature") or 1.0
        self.most: float | None = None
        self.least: float | None = None
        _, *pixels = self.session.get_inputs()[0].shape
        _, count = self.session.get_outputs()[0].shape
        about = self.preprocessing
        if not isinstance(self.classes, list) or len(self.classes) != count:
            raise ValueError("its metadata names other classes than its logits")
        if [*about["image_size"], about["channels"]] != pixels or not 0 < about["center_crop"] <= 1:
            raise ValueError("its metadata tells of other images than its input")

    def hold(self, percent: int | None, unknown: int | None) -> None:
        """Answer with sets that hold the truth in `percent` of cases, and with no label for images
        that are less like known ones than all but `unknown` percent of these.

        Raises:
            ValueError: the file does not say what that needs.
        """
        self.most = self._limit("sets", percent, 50)
        self.least = self._limit("unknown", unknown, 1)

    def _limit(self, what: str, percent: int | None, first: int) -> float | None:
        """What the record has for a percentage, the first of which is `first`."""
        limits: list[float | None] = self.record.get(what, [])
        there = dict(enumerate(limits, first))
        if percent is not None and there.get(percent) is None:
            raise ValueError(f"{percent}: the model's file says nothing of {what} at {percent} %")
        return None if percent is None else there[percent]

    def best(
        self, file: str | BinaryIO, top: int
    ) -> tuple[list[tuple[str, float]], dict[str, list[str] | bool]]:
        """The `top` likeliest classes of an image and their probabilities; and what else it has:
        `labels`, those of several by their thresholds, its `set`, and whether it is `unknown`.

        Raises:
            OSError, ValueError, SyntaxError, Image.DecompressionBombError: it cannot be decoded.
        """
        image = prepare(file, self.preprocessing)
        (logits,) = self.session.run(["logits"], {"images": image[None]})
        values = logits[0].astype(np.float64) / self.temperature
        chances = np.exp(values - np.logaddexp.reduce(values))
        if self.thresholds is not None:  # several labels per image, each for itself
            chances = np.exp(-np.logaddexp(0, -values))
        likeliest = np.argsort(-chances, kind="stable")
        found = [(self.classes[k], float(chances[k])) for k in likeliest[:top]]
        own: dict[str, list[str] | bool] = {}
        if self.thresholds is not None:
            own["labels"] = [self.classes[k] for k in np.flatnonzero(chances >= self.thresholds)]
        if self.most is not None:
            ranked = chances[likeliest]
            count = int((ranked.cumsum() - ranked <= self.most).sum())
            own["set"] = [self.classes[k] for k in likeliest[:count]]
        if self.least is not None:
            own["unknown"] = bool(self.temperature * np.logaddexp.reduce(values) < self.least)
            if own["unknown"]:
                found = []
                own.update({"set": []} if "set" in own else {})
        return found, own


def prepare(file: str | BinaryIO, preprocessing: dict[str, Any]) -> np.ndarray:
    """What the model wants of an image: uint8 (height, width, channels).

    Upright, on white, resized to cover a frame, of which the centre is kept.
    """
    height, width = preprocessing["image_size"]
    keep, channels = preprocessing["center_crop"], preprocessing["channels"]
    pixels = decode(file, channels, height / keep, width / keep)
    frame_height, frame_width = round(height / keep), round(width / keep)
    rows, columns = pixels.shape[:2]
    if columns * frame_height <= rows * frame_width:
        size = frame_width * rows // columns, frame_width
    else:
        size = frame_height, frame_height * columns // rows
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{columns}x{rows} px is too elongated")
    pixels = resize(resize(pixels, size[1], axis=1), size[0], axis=0)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def decode(file: str | BinaryIO, channels: int, height: float, width: float) -> np.ndarray:
    """An image, upright and on white: uint8 (H, W, channels).

    A JPEG much larger than `height` and `width` is decoded at 1/2, 1/4 or 1/8 of its size.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of EXIF that is damaged: pixels are not
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as opened:
            lies = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            rows, columns = opened.size if lies else opened.size[::-1]
            share = max(height / rows, width / columns)
            enough = math.ceil(rows * share), math.ceil(columns * share)
            if opened.mode in ("RGB", "L"):
                opened.draft(None, enough if lies else enough[::-1])
            upright = ImageOps.exif_transpose(opened)
            image = flat(upright).convert("RGB" if channels == 3 else "L")
    return np.asarray(image).reshape(image.height, image.width, channels)


def flat(image: Image.Image) -> Image.Image:
    """8 bits a channel, and white where the image is transparent."""
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a value; save it with 8 or 16")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def resize(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Bilinear and antialiased along one axis, in the fixed point of torch: the same bytes.

    Pillow's `Image.resize(..., Image.Resampling.BILINEAR)` is at most one level away.
    """
    length = pixels.shape[axis]
    if length == size:
        return pixels
    scale = length / size
    support = max(scale, 1.0)
    spans, shares = [], []
    for center in (np.arange(size) + 0.5) * scale:
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), length)
        weights = 1 - np.abs((np.arange(first, last) - center + 0.5) / support)
        spans.append(slice(first, last))
        shares.append(weights.clip(min=0) / weights.clip(min=0).sum())
    largest = max(float(share.max()) for share in shares)
    unit = 2.0 ** sum(math.floor(0.5 + largest * 2.0**bits) < 2**15 for bits in range(1, 23))
    lines = np.moveaxis(pixels, axis, 0)
    resized = np.empty((size, *lines.shape[1:]), np.uint8)
    for i, (span, share) in enumerate(zip(spans, shares, strict=True)):
        whole = np.floor(0.5 + share * unit)
        sums = np.tensordot(whole, lines[span].astype(np.float64), axes=1)
        resized[i] = np.floor((sums + unit / 2) / unit).clip(0, 255)
    return np.moveaxis(resized, 0, axis)


def files(given: list[str]) -> Iterator[str]:
    """The images that are named, and those in folders and all below them."""
    for place in map(Path, given):
        if place.is_dir():
            found = sorted(place.rglob("*"))
            yield from (str(path) for path in found if path.suffix.lower() in ENDINGS)
        else:
            yield str(place)


def as_json(labels: list[tuple[str, float]], own: dict[str, list[str] | bool]) -> dict[str, Any]:
    """What `best` says of an image as plain values."""
    predictions = [{"label": label, "probability": round(p, 6)} for label, p in labels]
    return {**own, "predictions": predictions}


def serve(model: Classifier, host: str, port: int, top: int) -> None:
    """Answer every image that is sent by POST with its labels, as JSON, until Ctrl-C."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BYTES:
                self.answer(411 if not length.isdigit() else 413, {"error": "send one image"})
                return
            body = self.rfile.read(int(length))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/form-data"):  # a form: its first file
                form = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
                files = (part for part in form.walk() if part.get_filename())
                body = next((bytes(part.get_payload(decode=True)) for part in files), b"")
            try:
                found = model.best(io.BytesIO(body), top)
            except DAMAGED:
                how = "no image that can be decoded; curl --data-binary @photo.jpg sends one"
                self.answer(400, {"error": how})
            else:
                self.answer(200, as_json(*found))

        def do_GET(self) -> None:
            self.answer(405, {"error": "send an image by POST: curl --data-binary @photo.jpg"})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer((host, port), Handler) as server:
        place = f"http://{host}:{server.server_port}"
        print(f"serving until Ctrl-C; curl -F file=@photo.jpg {place} or", flush=True)
        print(f"curl --data-binary @photo.jpg {place}", flush=True)
        server.serve_forever()


def percent(text: str) -> int:
    """`95%` or `95`."""
    return int(text.removesuffix("%"))


def main() -> int:
    """Print a line for each image; what cannot be decoded is named on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="an ONNX file of vit-export")
    parser.add_argument("images", nargs="*", help="image files, or folders of such")
    parser.add_argument("--top", type=int, default=5, help="labels for each image")
    parser.add_argument("--set", type=percent, help="95: also labels that hold the truth so often")
    parser.add_argument("--unknown", type=percent, help="5: no label for what is least known")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of CSV")
    parser.add_argument("--port", type=int, help="serve images that are sent by POST instead")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reached from elsewhere, too")
    asked = parser.parse_args()
    if bool(asked.images) == (asked.port is not None):
        parser.error("give images, or --port")
    try:
        model = Classifier(asked.model)
    except Exception as error:  # onnxruntime raises types of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"{asked.model} is no ONNX file of vit-export ({reason})", file=sys.stderr)
        return 2
    try:
        model.hold(asked.set, asked.unknown)
    except ValueError as error:
        parser.error(str(error))
    top = max(1, min(asked.top, len(model.classes)))
    if asked.port is not None:
        serve(model, asked.host, asked.port, top)
    table = csv.writer(sys.stdout, lineterminator="\n")
    if not asked.json:
        numbers = ["", *map(str, range(2, top + 1))]
        columns = {"labels": model.thresholds, "set": model.most, "unknown": model.least}
        head = [name for name, value in columns.items() if value is not None]
        pairs = (f"{w}{n}" for n in numbers for w in ("label", "probability"))
        table.writerow(["image", *head, *pairs])
    failed = 0
    for file in files(asked.images):
        try:
            labels, own = model.best(file, top)
        except DAMAGED as error:
            print(f"{file} cannot be decoded ({error})", file=sys.stderr)
            failed = 1
            continue
        if asked.json:
            print(json.dumps({"image": file, **as_json(labels, own)}))
        else:
            said = (("no", "yes")[x] if isinstance(x, bool) else ";".join(x) for x in own.values())
            cells = [file, *said, *(x for label, p in labels for x in (label, f"{p:.6f}"))]
            cells += [""] * (2 * top * (not labels))
            table.writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the labels (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
