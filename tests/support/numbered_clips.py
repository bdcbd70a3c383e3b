"""Clips whose pictures carry their number, and what FFmpeg's own command shows of them and when."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np

SIZE = (64, 48)  # width, height: 4 x 3 squares, a bit each
_BITS = 12


def picture(number: int):
    """A picture that spells a number in black and white squares."""
    bits = [(number >> bit) & 1 for bit in range(_BITS)]
    squares = np.array(bits, np.uint8).reshape(3, 4) * 200 + 28
    return np.repeat(squares.repeat(16, 0).repeat(16, 1)[..., None], 3, 2)


def number_in(pixels) -> int:
    """The number that a picture spells."""
    grey = np.asarray(pixels, float).reshape(SIZE[1], SIZE[0], -1).mean(2)
    squares = grey.reshape(3, 16, 4, 16)[:, 4:12, :, 4:12].mean((1, 3)).ravel()
    return int(sum(1 << bit for bit, value in enumerate(squares) if value > 128))


def numbers_in(frames) -> list[int]:
    return [number_in(pixels) for pixels in frames]


def shown_by_ffmpeg(path, *, numbered: bool = True) -> tuple[list[float], list[int], float]:
    """Times in seconds from the first frame's, numbers of the pictures if they have any, and when the last one ends."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-threads", "1", "-i", str(path), "-map", "0:v:0"]
    command += ["-vf", "showinfo", "-fps_mode", "passthrough", "-pix_fmt", "gray", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    listed = re.findall(r"showinfo.* pts_time:(\S+) .*? duration_time:(\S+)", done.stderr.decode(errors="replace"))
    times = [float(time) for time, _ in listed]
    frames = np.frombuffer(done.stdout, np.uint8).reshape(len(times), -1)
    numbers = numbers_in(frames) if numbered else []
    return [time - times[0] for time in times], numbers, times[-1] + float(listed[-1][1]) - times[0]
