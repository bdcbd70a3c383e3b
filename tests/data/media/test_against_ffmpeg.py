"""Frames by every rule are those that FFmpeg's own command shows at the same times, whatever the container."""

import bisect
from fractions import Fraction

import pytest
from support.media_files import write_clip
from support.numbered_clips import numbers_in, picture, shown_by_ffmpeg

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frame_rules
from vlvm_jax.data.media.frames import decode_clip

FRAMES = 40
NTSC = Fraction(30000, 1001)
H264, MPEG2 = {"gop": 8}, {"codec": "mpeg2video", "gop": 8}
HEVC = {"codec": "libx265", "codec_options": {"x265-params": "keyint=8:log-level=none"}}
OPEN_GOP = {"codec_options": {"x264-params": "open-gop=1:keyint=8:bframes=2"}}
FRAGMENTS = {"gop": 8, "options": {"movflags": "frag_keyframe+empty_moov"}}
UNEVEN = (1, 1, 2, 7, 1, 3, 1, 12, 1, 1)  # how long frames are shown, over and over

# Name: file, whether frames may be unevenly far apart, whether it has B-frames, how it is made.
CLIPS = {
    "mp4": ("c.mp4", True, (0, 2), H264),
    "mp4, fragmented": ("c.mp4", True, (0, 2), FRAGMENTS),
    "mp4, hevc": ("c.mp4", False, (2,), HEVC),
    "mp4, open groups": ("c.mp4", True, (2,), OPEN_GOP),
    "mov, mpeg4": ("c.mov", True, (0, 2), {"codec": "mpeg4", "gop": 8}),
    "mkv": ("c.mkv", True, (0, 2), H264),
    "mkv, open groups": ("c.mkv", True, (2,), OPEN_GOP),
    "webm": ("c.webm", True, (0,), {"codec": "libvpx", "gop": 8}),
    "avi": ("c.avi", False, (0, 2), {"codec": "mpeg4", "gop": 8}),
    "avi, msmpeg4": ("c.avi", False, (0,), {"codec": "msmpeg4", "gop": 8}),
    "ts": ("c.ts", True, (0, 2), H264),
    "ts, open groups": ("c.ts", True, (2,), OPEN_GOP),
    "mpg": ("c.mpg", False, (0, 2), MPEG2 | {"form": "mpeg"}),
    "mpg, h264": ("c.mpg", False, (0, 2), H264 | {"form": "vob"}),
    "flv": ("c.flv", True, (0, 2), H264),
    "gif": ("c.gif", True, (0,), {"codec": "gif", "pix_fmt": "rgb8"}),
}  # fmt: skip
RATES = {"25": 25, "29.97": NTSC}
CASES = [
    (name, b_frames, rate)
    for name, (_, uneven, b_frames_of, _) in CLIPS.items()
    for b_frames in b_frames_of
    for rate in (*RATES, *(("uneven",) if uneven else ()))
    if not (name == "gif" and rate == "29.97")  # whose clock has ticks of 10 ms
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}B-{case[2]}")
def clip(request, tmp_path_factory):
    """A clip's path, and times, numbers and end as FFmpeg lists them."""
    name, b_frames, rate = request.param
    file, _, _, how = CLIPS[name]
    starts = [0]
    for number in range(FRAMES - 1):
        starts.append(starts[-1] + UNEVEN[number % len(UNEVEN)])
    how = how | ({"times": starts} if rate == "uneven" else {})
    if "codec_options" not in how and name not in ("gif", "webm"):
        how["b_frames"] = b_frames
    path = tmp_path_factory.mktemp("clip") / file
    write_clip(path, map(picture, range(FRAMES)), fps=RATES.get(rate, 25), **how)
    times, numbers, end = shown_by_ffmpeg(path)
    assert numbers == list(range(FRAMES))
    return str(path), times, end, rate != "uneven"


TICKS = {".mkv": 1e-3, ".webm": 1e-3, ".flv": 1e-3, ".gif": 1e-2}


def at(clip, time):
    """The frame on screen at a time; a container's clock may have delayed it by half a tick."""
    path, times, *_ = clip
    return max(0, bisect.bisect_right(times, time + TICKS.get(path[path.rindex(".") :], 1e-5) / 2 + 1e-6) - 1)


def take(path, count, **options):
    clip = decode_clip(path, count, lambda pixels: pixels, **options)
    return numbers_in(clip.frames), clip


@pytest.mark.parametrize("fps", [1, 4, 7.5, 60])
def test_rule_fps_takes_what_is_on_screen_at_every_slot(clip, fps):
    path, times, end, _ = clip
    slots = [slot / fps for slot in range(2000) if slot / fps < end - 1.5e-3]
    numbers, taken = take(path, len(slots), rule="fps", fps=fps)
    assert numbers == [at(clip, slot) for slot in slots]
    assert taken.duration == pytest.approx(end, abs=2e-3)
    for slot, number, before, time in zip(slots, numbers, [None, *numbers], taken.times, strict=False):
        assert time == pytest.approx(slot if number == before else times[number], abs=2e-3)


def test_rule_fps_spreads_its_cap_over_more_slots(clip):
    path, _, end, _ = clip
    numbers, _ = take(path, 5, rule="fps", fps=25)
    assert numbers == [at(clip, (part + 0.5) * end / 5) for part in range(5)]


@pytest.mark.parametrize("rule", ["uniform", "segment", "segment_mid", "segment_start", "video_chatgpt"])
def test_the_other_rules_count_in_the_mean_rate(clip, rule):
    path, times, end, constant = clip
    numbers, taken = take(path, 8, rule=rule, seed=(1, 2))
    assert taken.times == pytest.approx([times[number] for number in numbers], abs=2e-3)
    if constant:
        assert numbers == frame_rules.choose(FRAMES, 25.0, 8, rule=rule, seed=(1, 2))
        return
    chosen = frame_rules.choose(10_000, 10_000 / end, 8, rule=rule, seed=None)
    if rule != "segment":  # whose draws follow the number of frames that is stated
        near = [{at(clip, (index / 10_000 + shift / FRAMES) * end) for shift in (-1, 0, 1)} for index in chosen]
        assert all(set(range(min(some), max(some) + 1)) & set(numbers) for some in near)
    assert numbers == sorted(set(numbers)) and numbers[-1] >= at(clip, end * 5 / 8)


def test_each_frame_of_a_short_clip(clip):
    path, times, *_ = clip
    numbers, taken = take(path, 2 * FRAMES)
    assert numbers == list(range(FRAMES))
    assert taken.times == pytest.approx(times, abs=2e-3)


def test_parts(clip):
    path, times, end, _ = clip
    for span in ((end + 0.01, end + 5), (end + 100, end + 200), (-5.0, -1.0)):
        for rule in ("uniform", "fps"):
            with pytest.raises(BadSampleError, match="empty"):
                take(path, 4, span=span, rule=rule)
    assert take(path, 1, span=(times[-1] + 0.005, end + 9))[0] == [FRAMES - 1]
    start, stop = times[10] + 0.005, times[30] + 0.005
    slots = [start + slot / 8 for slot in range(2000) if start + slot / 8 < stop - 1.5e-3]
    assert take(path, 2000, rule="fps", fps=8, span=(start, stop))[0] == [at(clip, slot) for slot in slots]
