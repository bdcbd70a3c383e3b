"""Clips of unusual kinds and clips that are damaged, for tests that compare what the commands make of them."""

from pathlib import Path

import av
from PIL import Image

from support.media_files import moving, remux, write_clip, write_sound

CASES = Path(__file__).parents[1] / "data" / "cases"
GIVEN = (
    "avi_truncated_msmpeg4/ms_trunc.avi",
    "late_stream/damaged.flv",
    "mirrored/hflip.mp4",
    "mp4_cut_download/cut.mp4",
    "prepare_fps_hold/hold.mp4",
    "prepare_fps_hold/two.gif",
    "sar/sar.mp4",
)
FAST_START = {"movflags": "faststart"}
SIZE = (48, 32)
VP9 = {"codec": "libvpx-vp9", "codec_options": {"deadline": "realtime", "cpu-used": "8"}}
KINDS = {
    "odd sizes": ("c.mp4", (49, 33), {"pix_fmt": "yuv444p"}),
    "one pixel": ("c.mkv", (1, 1), {"codec": "ffv1", "pix_fmt": "bgr0"}),
    "one pixel wide": ("c.gif", (1, 40), {"codec": "gif", "pix_fmt": "rgb8"}),
    "10 bit": ("c.mp4", SIZE, {"pix_fmt": "yuv420p10le"}),
    "4:4:4": ("c.mkv", SIZE, {"pix_fmt": "yuv444p"}),
    "grey": ("c.mkv", SIZE, {"codec": "ffv1", "pix_fmt": "gray"}),
    "grey, 16 bit": ("c.mkv", SIZE, {"codec": "ffv1", "pix_fmt": "gray16le"}),
    "with alpha": ("c.webm", SIZE, {**VP9, "pix_fmt": "yuva420p"}),
    "interlaced": ("c.mp4", SIZE, {"codec_options": {"x264-params": "tff=1:keyint=12"}}),
    "full range": ("c.avi", SIZE, {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "high": ("c.mp4", (16, 400), {}),
}
CONTAINERS = {
    "mp4": ("c.mp4", {"gop": 6, "options": FAST_START}),
    "mkv": ("c.mkv", {"gop": 6}),
    "avi": ("c.avi", {"codec": "mpeg4", "gop": 6}),
    "ts": ("c.ts", {"gop": 6}),
    "flv": ("c.flv", {"gop": 6}),
    "webm": ("c.webm", {**VP9, "gop": 6}),
    "gif": ("c.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
}


def _kind(path, name, size, how):
    return write_clip(path / name, moving(24, size), **how)


def _container(path, kind):
    name, how = CONTAINERS[kind]
    return path / name, write_clip(path / name, moving(40, SIZE), **how)


def _cut(path, kind, share):
    file, made = _container(path, kind)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    return made


def _holed(path, kind, share):
    """A file some of whose bytes are lost in the middle."""
    file, made = _container(path, kind)
    data = bytearray(file.read_bytes())
    at = int(share * len(data))
    data[at : at + 150] = bytes(150)
    file.write_bytes(bytes(data))
    return made


def _last_packet_broken(path):
    """Its last packet is of another codec."""
    source = write_clip(path / "whole.mkv", moving(24, SIZE), gop=6, b_frames=0)
    with av.open(source) as given, av.open(str(path / "c.mkv"), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for packet in packets[:-1]:
            packet.stream = stream
            container.mux(packet)
        broken = av.Packet(b"\x00\x00\x00\x05\xff\xff\xff\xff\xff")
        broken.pts = broken.dts = packets[-1].pts
        broken.time_base, broken.stream = packets[-1].time_base, stream
        container.mux(broken)
    return str(path / "c.mkv")


def _joined(path, name, first, second):
    """Two clips of different sizes, one behind the other in one file."""
    parts = [write_clip(path / f"{i}{name}", moving(12, size), gop=6) for i, size in enumerate((first, second))]
    (path / name).write_bytes(b"".join((path / part.rpartition("/")[2]).read_bytes() for part in parts))
    return str(path / name)


def _animation(path, name):
    frames = [Image.fromarray(pixels).convert("RGBA") for pixels in moving(5, SIZE)]
    frames[0].save(path / name, save_all=True, append_images=frames[1:], duration=[100, 300, 100, 200, 500])
    return str(path / name)


def _still(path, name):
    Image.fromarray(next(moving(1, SIZE))).save(path / name)
    return str(path / name)


def _bytes(path, data):
    (path / "c.mp4").write_bytes(data)
    return str(path / "c.mp4")


def _no_keyframe_first(path):
    """It begins in the middle of a group of pictures."""
    source = write_clip(path / "whole.mkv", moving(24, SIZE), gop=12, b_frames=0)
    seen = iter(range(99))
    return remux(source, path / "c.mkv", lambda packet: next(seen) >= 3)


ODD = {
    **{kind: lambda path, how=how: _kind(path, *how) for kind, how in KINDS.items()},
    **{
        f"{kind}, cut at {share}": lambda path, kind=kind, share=share: _cut(path, kind, share)
        for kind in CONTAINERS
        for share in (0.3, 0.9)
    },
    **{
        f"{kind}, a hole at {share}": lambda path, kind=kind, share=share: _holed(path, kind, share)
        for kind in CONTAINERS
        for share in (0.6, 0.85)
    },
    "last packet broken": _last_packet_broken,
    "begins within a group": _no_keyframe_first,
    "sizes change, h264": lambda path: _joined(path, "c.h264", SIZE, (64, 64)),
    "sizes change, ts": lambda path: _joined(path, "c.ts", SIZE, (32, 64)),
    **{f"animated {name}": lambda path, name=name: _animation(path, name) for name in ("c.webp", "c.png", "c.avif")},
    **{f"still {name}": lambda path, name=name: _still(path, name) for name in ("c.webp", "c.png", "c.jpg", "c.avif")},
    **{name: lambda path, name=name: str(CASES / name) for name in GIVEN},
    "sound alone": lambda path: write_sound(path / "c.mp4"),
    "empty": lambda path: _bytes(path, b""),
    "text": lambda path: _bytes(path, b"not a clip " * 99),
}
