"""Which files are images: told by a well-known ending, else by the first bytes. Needs no torch."""

from __future__ import annotations

import os
import re
import stat

from PIL import features

_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if _AVIF else []))
"""What is read, by Pillow's names; of several frames the first."""
READ = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
"""The same for people."""
_IMAGES = "jpg jpeg jpe jfif mpo png webp bmp tif tiff gif" + " avif" * _AVIF
_OTHERS = """
    txt md rst log csv tsv json jsonl xml yaml yml toml ini cfg html htm py ipynb sh bat url lnk db
    doc docx odt rtf pdf ppt pptx xls xlsx zip tar gz tgz bz2 xz zst 7z rar part crdownload tmp bak
    npy npz pt pth pkl h5 hdf5 mat parquet sqlite lmdb onnx safetensors md5 sha1 sha256
    mp4 mov avi mkv webm mpg mpeg m4v 3gp wmv mts mp3 wav flac ogg m4a aae xmp thm
    heic heif jxl jp2 svg psd ai eps ico tga ppm pgm exr hdr dcm nii
    cr2 cr3 nef nrw arw srf sr2 dng orf rw2 raf pef
"""
IS_IMAGE = {f".{e}": True for e in _IMAGES.split()} | {f".{e}": False for e in _OTHERS.split()}
"""By ending, for files that are not opened to be listed."""
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|....ftyp(avif|avis|mi[af]1.*avif|msf1.*avif)",
    re.DOTALL,
)


def ending_of(name: str) -> str:
    """`.jpg` of `a.b.JPG`."""
    return os.path.splitext(name)[1].lower()


def is_image(path: str, ending: str) -> bool:
    """Whether a regular file counts as an image; only one of unknown `ending` is opened."""
    known = IS_IMAGE.get(ending)
    if known is not None:
        return known
    try:
        with open(path, "rb", buffering=0) as file:
            return _FIRST_BYTES.match(file.read(64)) is not None
    except OSError:
        return False


def is_regular(path: str) -> bool:
    """Whether this is a file and no folder, pipe, socket or device, which may never end.

    A link to a file that is missing counts: it is told by name when it is read.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
    except OSError:  # a link that leads in a circle
        return False
