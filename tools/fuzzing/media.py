"""Videos and pictures of many formats, small, and what is made of them to harm a reader."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tools.fuzzing.damage import NUMBERS, Rng, harm
from tools.fuzzing.watch import Canaries

VIDEOS = {
    "h264.mp4": ("libx264", "yuv420p"), "hevc.mp4": ("libx265", "yuv420p10le"), "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "vp8.webm": ("libvpx", "yuv420p"), "h264.mkv": ("libx264", "yuv444p"), "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"), "anim.gif": ("gif", "rgb8"), "h264.ts": ("libx264", "yuv420p"),
    "prores.mov": ("prores_ks", "yuv422p10le"), "flv1.flv": ("flv1", "yuv420p"), "mpeg2.mpg": ("mpeg2video", "yuv420p"),
}  # fmt: skip
PICTURES: dict[str, tuple[str, dict[str, object]]] = {
    "rgb.png": ("RGB", {}), "deep.png": ("I;16", {}), "palette.png": ("P", {}), "alpha.png": ("RGBA", {}),
    "base.jpg": ("RGB", {}), "progressive.jpg": ("RGB", {"progressive": True}), "cmyk.jpg": ("CMYK", {}),
    "lossy.webp": ("RGB", {}), "lossless.webp": ("RGBA", {"lossless": True}), "rgb.bmp": ("RGB", {}),
    "raw.tiff": ("RGB", {}), "lzw.tiff": ("RGB", {"compression": "tiff_lzw"}), "float.tiff": ("F", {}),
    "jpeg.tiff": ("RGB", {"compression": "jpeg"}), "still.gif": ("P", {}), "a.avif": ("RGB", {"speed": 10}),
    "a.jp2": ("RGB", {}), "a.ppm": ("RGB", {}),
}  # fmt: skip
WIDTH, HEIGHT, FRAMES = 96, 80, 12


def sources(folder: Path) -> dict[str, bytes]:
    """Every kind of file as it should be, by its name."""
    made = {}
    for name, (codec, pixels) in VIDEOS.items():
        _video(folder / name, codec, pixels)
        made[name] = (folder / name).read_bytes()
    picture = Image.fromarray(_shades(1)[0])
    for name, (mode, options) in PICTURES.items():
        shown = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 200) if mode == "I;16" else picture
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "jp2": "JPEG2000"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        (shown if mode == "I;16" else shown.convert(mode)).save(stream, kind, **options)
        made[name] = stream.getvalue()
    return made


def _shades(count: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([128 + 100 * np.sin(x / 9 + i), 255 * y / HEIGHT, (x + y + 7 * i) % 128], -1) for i in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def _video(path: Path, codec: str, pixels: str) -> None:
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=25, options=quiet)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(_shades(FRAMES)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write(rng: Rng, folder: Path, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str, str]:
    """Writes one case. Gives the file's name, the data type it is read as, and what was done."""
    name = str(rng.choice(list(good)))
    kind = "video" if name in VIDEOS else "image"
    special = SPECIAL[int(rng.integers(len(SPECIAL)))] if rng.random() < 0.3 else None
    if special is None:
        content, what = harm(rng, good[name])
        (folder / name).write_bytes(content)
        return name, kind, f"{name} {what}"
    named, what = special(rng, folder, name, good, canaries)
    read_as = {"video": "image", "image": "video"}[kind] if rng.random() < 0.1 else kind
    return named, read_as, f"{name} {what}"


def _sizes(rng: Rng, folder: Path, name: str, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str]:
    """Wherever the width or height stands as a number, another."""
    data, put = good[name], NUMBERS[-int(rng.integers(1, 9))]
    for side in (WIDTH, HEIGHT):
        for form in (">I", "<I", ">H", "<H"):
            new = struct.pack(form, put & ((1 << 8 * struct.calcsize(form)) - 1))
            data = data.replace(struct.pack(form, side), new, int(rng.integers(1, 4)))
    (folder / name).write_bytes(data)
    return name, f"sizes {put}"


def _joined(rng: Rng, folder: Path, name: str, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str]:
    other = str(rng.choice(list(good)))
    (folder / name).write_bytes(good[name] + good[other])
    return name, f"joined with {other}"


def _renamed(rng: Rng, folder: Path, name: str, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str]:
    other = str(rng.choice(list(good)))
    (folder / other).write_bytes(good[name])
    return other, f"renamed to {other}"


def _playlist(rng: Rng, folder: Path, name: str, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str]:
    """Text by which libav would open another file, or a host."""
    target = str(rng.choice(canaries.names(folder)))
    text = str(
        rng.choice(
            (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f"file '{target}'\n",
                f"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video {canaries.port} RTP/AVP 96\n",
                f'<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>',
                f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
                f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) run\n",
                f"movie={target}",
            )
        )
    )
    named = str(
        rng.choice((name, "a.m3u8", "a.ffconcat", "a.sdp", "a.mpd", "a.svg", "a.eps", "a%03d.mp4", "concat:a.mp4"))
    )
    (folder / named).write_text(text)
    return named, f"text {text[:12]!r} as {named}"


def _odd(rng: Rng, folder: Path, name: str, good: dict[str, bytes], canaries: Canaries) -> tuple[str, str]:
    """No regular file of bytes."""
    what = str(rng.choice(("empty", "folder", "fifo", "loop", "absent", "gone", "sparse")))
    file = folder / name
    if what == "empty":
        file.touch()
    elif what == "folder":
        file.mkdir()
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "gone":
        file.symlink_to("nowhere")
    elif what == "sparse":
        file.write_bytes(good[name])
        os.truncate(file, 2**33)
    return name, what


SPECIAL: tuple[Callable[[Rng, Path, str, dict[str, bytes], Canaries], tuple[str, str]], ...] = (
    _sizes, _sizes, _joined, _renamed, _playlist, _playlist, _odd,
)  # fmt: skip
