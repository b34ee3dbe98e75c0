"""Frames are those asked for. Oracles: numbers that the frames show, PyAV decoding everything, Pillow's transposes."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import clip, pictures
from PIL import Image

from jvr1.data import video
from jvr1.data.media import MediaError, load_media, probe, seconds_per_step
from jvr1.model.families import RULES
from jvr1.model.media import PixelLimits, Probe, VideoSampling
from jvr1.model.qwen2_5_vl.frames import frame_indices
from tools.benchmarks.clips import LIMITS, clips, make, number_of, picture

FRAMES = 300
ANY = PixelLimits(784, 400 * 784)
EVERY = VideoSampling(frames=100_000)
EACH_STRUCTURE = {
    "H.264 no-B mp4", "H.264 B avi", "H.264 pyramid ts", "H.264 pyramid wmv", "H.264 open frag-mp4", "H.264 open flv",
    "H.264 open mpg", "H.264 refresh mp4", "H.264 refresh mkv", "H.264 interlaced mov", "H.264 pyramid 3gp",
    "HEVC no-B mkv", "HEVC closed mp4", "HEVC open mp4", "HEVC open ts", "HEVC refresh mov",
    "VP8 alt-ref webm", "VP9 alt-ref webm", "VP9 alt-ref mp4", "AV1 pyramid mkv",
    "MPEG-1 B mpg", "MPEG-2 B mpg", "MPEG-2 B ts", "MPEG-2 B mp4", "MPEG-2 closed mkv", "MPEG-2 interlaced mkv",
    "MPEG-4 B avi", "MPEG-4 B mp4", "MPEG-4 B 3gp", "Xvid B avi", "H.263 no-B 3gp", "FLV1 no-B flv", "WMV2 no-B wmv",
    "MJPEG intra avi", "ProRes intra mov", "GIF intra gif",
}  # fmt: skip
"""Every codec, structure and container of the matrix at least once; tools/video_matrix.py goes through all."""


def numbers(path, sampling, limits=LIMITS):
    return [number_of(frame) for frame in load_media(path, "video", sampling, limits, RULES).frames]


@pytest.mark.parametrize("one", [one for one in clips() if one.name in EACH_STRUCTURE], ids=lambda one: one.name)
def test_each_frame_is_the_one_asked_for(tmp_path, one):
    make(one, tmp_path / one.file, FRAMES)
    seen = probe(tmp_path / one.file, "video")
    assert seen.frames == FRAMES
    for sampling in (VideoSampling(frames=16), VideoSampling(fps=2, max_frames=1000), VideoSampling(frames=3)):
        wanted = frame_indices(FRAMES, seen.fps, sampling)[0].tolist()
        assert numbers(tmp_path / one.file, sampling) == wanted
    sampling = VideoSampling(start=7.03, end=7.25)
    assert numbers(tmp_path / one.file, sampling) == frame_indices(FRAMES, seen.fps, sampling)[0].tolist()


def test_the_matrix_holds_what_is_tested():
    assert {one.name for one in clips()} >= EACH_STRUCTURE
    assert {one.codec for one in clips()} == {one.codec for one in clips() if one.name in EACH_STRUCTURE}


SAME = [
    "H.264 pyramid mp4",
    "H.264 open mkv",
    "H.264 interlaced mp4",
    "HEVC open mp4",
    "VP9 alt-ref webm",
    "MPEG-2 B mpg",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAME, "MPEG-4 B mp4"])
def test_a_frame_is_the_same_whatever_else_is_asked_for(tmp_path, name):
    """To the bit, alone or among others, and as decoding everything gives it."""
    one = next(one for one in clips() if one.name == name)
    make(one, tmp_path / one.file, FRAMES)
    with av.open(str(tmp_path / one.file)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rng = np.random.default_rng(0)
    for count in (1, 1, 1, 2, 5, 30):
        indices = np.sort(rng.choice(FRAMES, count, replace=False))
        file = video.VideoFile(tmp_path / one.file)
        assert file.probe.frames == len(whole)
        for index, pixels in zip(indices, file.read(indices), strict=True):
            np.testing.assert_array_equal(pixels, whole[index])


def test_not_everything_is_decoded(tmp_path, monkeypatch):
    """Of a long clip with entries only the stretches from them to the frames."""
    one = next(one for one in clips() if one.name == "H.264 pyramid mp4")
    make(one, tmp_path / one.file, FRAMES)
    decoded, whole = [], video.VideoFile._decoded

    def count(self, stream, packet, strict):
        decoded.append(packet)
        return whole(self, stream, packet, strict)

    monkeypatch.setattr(video.VideoFile, "_decoded", count)
    assert numbers(tmp_path / one.file, VideoSampling(start=10.1, end=10.15, frames=1)) == [253]
    assert len(decoded) < 50


# ------------------------------------------------------------------------------------------------ what is shown


def remux(source, target, first=0, **options):
    """Copies packets without decoding, those before `first` (in ticks of the source) left out; times as they are."""
    with av.open(str(source)) as read, av.open(str(target), "w", **options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.size and packet.pts >= first:
                packet.stream = copy
                write.mux(packet)


def edited(path, media_time):
    """An mp4's first edit list entry, changed to begin at media_time (in ticks of the track)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst")
    assert data[at + 4] == 0, "version 0"
    struct.pack_into(">i", data, at + 16, media_time)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["H.264 pyramid mp4", "HEVC closed mp4"])
def test_what_an_edit_list_hides_is_not_counted(tmp_path, name):
    one = next(one for one in clips() if one.name == name)
    make(one, tmp_path / one.file, FRAMES)
    with av.open(str(tmp_path / one.file)) as container:
        tick = container.streams.video[0].time_base
        lead = int(container.streams.video[0].codec_context.has_b_frames / 25 / tick)
    path = edited(tmp_path / one.file, lead + int(70 / 25 / tick))
    with av.open(str(path)) as container:
        shown = [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert 60 < shown[0] <= 72
    assert shown == list(range(shown[0], FRAMES))
    assert probe(path, "video").frames == len(shown)
    sampling = VideoSampling(frames=16)
    indices = frame_indices(len(shown), 25.0, sampling)[0]
    assert numbers(path, sampling) == [shown[index] for index in indices]
    np.testing.assert_allclose(load_media(path, "video", sampling, LIMITS, RULES).timestamps, indices / 25, atol=1e-3)


def test_a_beginning_cut_off_is_not_shown(tmp_path):
    """A transport stream that begins within a group: frames from the first that can be decoded."""
    one = next(one for one in clips() if one.name == "H.264 pyramid ts")
    make(one, tmp_path / one.file, FRAMES)
    data = (tmp_path / one.file).read_bytes()
    cut = len(data) // 3 // 188 * 188
    (tmp_path / "cut.ts").write_bytes(data[cut:])
    seen = probe(tmp_path / "cut.ts", "video")
    shown = numbers(tmp_path / "cut.ts", EVERY)
    assert len(shown) == seen.frames
    assert shown == list(range(shown[0], FRAMES))
    assert shown[0] % 50 == 0


def turned(path, matrix):
    """The track's display matrix of an mp4, changed: (a, b, c, d) of 16.16 fixed point."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        struct.pack_into(">i", data, at + place, value << 16)
    path.write_bytes(data)
    return path


ORIENTATIONS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""(a, b, c, d) of ISO 14496-12: (x, y) is shown at (a x + c y, b x + d y); Pillow's name for it."""


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_display_matrices(tmp_path, matrix):
    path = turned(clip(tmp_path / "clip.mp4", frames=4), matrix)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    expected = Image.fromarray(stored)
    if ORIENTATIONS[matrix] is not None:
        expected = expected.transpose(ORIENTATIONS[matrix])
    assert probe(path, "video") == Probe(expected.height, expected.width, 4, 10.0)
    np.testing.assert_array_equal(load_media(path, "video", EVERY, ANY, RULES).frames[0], np.asarray(expected))


def test_real_times_of_uneven_frames(tmp_path):
    """Frames by number, as the reference takes them; their times and the time of a step are the real ones."""
    times = [*range(0, 100, 2), *range(100, 1100, 20)]
    path = clip(tmp_path / "clip.mp4", frames=100, fps=25, times=times)
    sampling = VideoSampling(frames=10)
    media = load_media(path, "video", sampling, ANY, RULES)
    indices = frame_indices(100, 25.0, sampling)[0]
    real = np.array(times)[indices] / 25
    np.testing.assert_allclose(media.timestamps, real, atol=1e-3)
    assert media.seconds_per_step == pytest.approx(2 * (real[-1] - real[0]) / 99 * 100 / 10, rel=1e-3)
    early = load_media(path, "video", VideoSampling(frames=10, end=0.5), ANY, RULES)
    assert early.timestamps[-1] < 2


def test_even_frames_have_the_reference_s_time():
    indices, sample_fps = frame_indices(300, 29.97, VideoSampling())
    rounded = np.round(indices / 29.97, 3)
    assert seconds_per_step(rounded, indices, 29.97, sample_fps) == 2 / sample_fps


def test_second_streams_and_covers_are_ignored(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=10)]
        streams.append(container.add_stream("libx264", rate=5))
        for stream, (width, height) in zip(streams, ((40, 40), (112, 84), (224, 168)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        streams[0].pix_fmt = "yuvj420p"
        streams[0].disposition = av.stream.Disposition.attached_pic
        streams[1].disposition = av.stream.Disposition.default
        for stream, count in zip(streams, (1, 40, 20), strict=True):
            for number, shade in enumerate(pictures(count, stream.height, stream.width)):
                frame = av.VideoFrame.from_ndarray(shade, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, int(stream.codec_context.framerate))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert probe(path, "video") == Probe(84, 112, 40, 10.0)


# ------------------------------------------------------------------------------------------------ refusals


def refusal(path):
    """The cause, the same when probed and when loaded, twice."""
    causes = set()
    for _ in range(2):
        with pytest.raises(MediaError) as probed:
            probe(path, "video")
        with pytest.raises(MediaError) as loaded:
            load_media(path, "video", VideoSampling(), ANY, RULES)
        causes |= {str(probed.value), str(loaded.value)}
    assert len(causes) == 1, causes
    return probed.value.cause


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi", "ts", "mpg", "flv", "mp4"])
def test_a_file_whose_end_never_came_is_refused(tmp_path, suffix):
    codec = {"webm": "libvpx-vp9", "mpg": "mpeg2video"}.get(suffix, "libx264")
    flags = "+faststart" if suffix == "mp4" else None
    path = clip(tmp_path / f"clip.{suffix}", frames=100, fps=25, codec=codec, movflags=flags)
    data = path.read_bytes()
    kept = len(data) * 4 // 10
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    assert refusal(path) in ("truncated", "corrupt")


def test_nothing_but_the_file_is_opened(tmp_path):
    """Playlists, lists of files and text are no videos, whatever they are called."""
    elsewhere = clip(tmp_path / "segment.ts", frames=20)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{elsewhere}\n#EXT-X-ENDLIST\n"
    for name, text in {
        "list.m3u8": playlist,
        "list.mp4": playlist,
        "list.ffconcat": f"ffconcat version 1.0\nfile {elsewhere}\n",
        "page.txt": "<html><body>404 not found</body></html>\n" * 20,
        "page.nfo": "not found\n" * 40,
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert refusal(tmp_path / name) == "not-a-video", name
    (tmp_path / "im%01d.mp4").write_bytes(elsewhere.read_bytes())
    assert probe(tmp_path / "im%01d.mp4", "video").frames == 20


def test_more_frames_than_bytes_is_damage(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"stts")
    struct.pack_into(">I", data, at + 12, 0x7FFFFFFF)
    path.write_bytes(data)
    assert refusal(path) == "corrupt"


@pytest.mark.parametrize("rate", [Fraction(1, 10**5), Fraction(50_000)])
def test_absurd_rates_are_refused(tmp_path, rate):
    assert refusal(clip(tmp_path / "clip.mp4", frames=5, fps=rate, codec="mjpeg", pixels="yuvj420p")) == "corrupt"


def test_large_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 84 * 112 - 1)
    monkeypatch.setattr(video.VideoFile, "_decoded", lambda *_: pytest.fail("decoded"))
    assert refusal(clip(tmp_path / "clip.mp4")) == "too-large"


def test_damage_gives_the_same_outcome_each_time(tmp_path):
    """Bytes flipped within the stream: the same pixels or the same refusal."""
    one = next(one for one in clips() if one.name == "H.264 pyramid mkv")
    make(one, tmp_path / one.file, 60)
    data, rng = (tmp_path / one.file).read_bytes(), np.random.default_rng(3)
    refused = 0
    for _ in range(20):
        damaged = bytearray(data)
        for place in rng.integers(1000, len(data) - 200, 3):
            damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "clip.mkv").write_bytes(damaged)
        results = set()
        for _ in range(3):
            try:
                results.add(
                    load_media(tmp_path / "clip.mkv", "video", VideoSampling(frames=16), ANY, RULES).frames.tobytes()
                )
            except MediaError as error:
                results.add(str(error))
                refused += 1
        assert len(results) == 1
    assert refused


def test_numbers_are_read_as_they_were_drawn():
    assert [number_of(picture(number)) for number in range(0, 4096, 7)] == list(range(0, 4096, 7))


def test_what_is_wrong_with_the_first_frame_is_seen_each_time(tmp_path):
    """With two threads of a decoder one probe in forty took it for whole."""
    found = {}
    for number in range(6):
        file = clip(tmp_path / f"{number}.mkv", frames=1 + number // 3, pixels="yuv444p")
        data = bytearray(file.read_bytes())
        at = int(len(data) * (0.6 + 0.1 * (number % 3)))
        data[at : at + 60] = bytes(60)
        file.write_bytes(data)
        found[number] = {_probed(file) for _ in range(120)}
    assert {len(outcomes) for outcomes in found.values()} == {1}
    assert "corrupt" in set().union(*found.values())


def _probed(file):
    try:
        return probe(file, "video").frames
    except MediaError as error:
        return error.cause
