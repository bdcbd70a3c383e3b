"""Real media files for tests, made with FFmpeg, and what decoding all of them gives."""

import av
import numpy as np
from PIL import Image

from vlvm_jax.data.media.pyav import fraction

STEP = 12  # brightness between neighbouring frames of a grey clip: far above what compression changes


def grey(total, size):
    """Frames of one brightness each, which rises from frame to frame."""
    return (np.full((size[1], size[0], 3), STEP * i, np.uint8) for i in range(total))


def moving(total, size, seed=0):
    """Frames of a texture that moves, no two alike, as codecs with motion like them."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    for i in range(total):
        x, y = int(width / 2 * (1 + np.sin(i / 7))), int(height / 2 * (1 + np.cos(i / 11)))
        pixels = texture[y : y + height, x : x + width].copy()
        pixels[: height // 4, : width // 4] = (40 * i % 256, 90 * i % 256, 255 - 17 * i % 256)
        yield pixels


def write_clip(
    path,
    frames,
    *,
    fps=10,
    codec="libx264",
    pix_fmt="yuv420p",
    gop=None,
    b_frames=None,
    times=None,
    codec_options=None,
    options=None,
    form=None,
    sound=False,
    muxed=lambda packet: packet,
    title=None,
):
    """A clip of frames [H, W, 3].

    Args:
      times: of the frames, in steps of 1 / fps; default: one after the other.
      muxed: a packet as it is to be written, None for none.
      title: in the container's metadata.
    """
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        noise = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # threads of libvpx spin, which takes minutes on a busy machine
        if gop is not None:
            stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames

        def mux(packets):
            container.mux([kept for kept in map(muxed, packets) if kept is not None])

        for number, pixels in enumerate(frames):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], 1 / fraction(stream.codec_context.rate)
            mux(stream.encode(frame))
            if noise is not None:
                wave = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
                wave.sample_rate, wave.pts = 16000, 1600 * number
                container.mux(noise.encode(wave))
        mux(stream.encode())
        if noise is not None:
            container.mux(noise.encode())
    return str(path)


def write_sound(path, seconds=1):
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * seconds), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return str(path)


def remux(source, path, change, **options):
    """The same packets in another file; `change(packet)` alters each and says whether to keep it."""
    with av.open(str(source)) as given, av.open(str(path), "w", **options) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size and change(packet):
                packet.stream = stream
                container.mux(packet)
    return str(path)


def decode_all(path):
    """Times in seconds from the first frame's and pixels of all frames, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        unit = fraction(stream.time_base)
    if any(time is None for time, _ in frames):
        return None, [pixels for _, pixels in frames]
    return [float((time - frames[0][0]) * unit) for time, _ in frames], [pixels for _, pixels in frames]
