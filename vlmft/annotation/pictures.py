"""Pictures and frames as data: URIs, no larger than a server needs them."""

import base64
import io

from PIL import Image

from vlmft.annotation.media import MediaFile
from vlmft.config.media import Decoder, VideoRule
from vlmft.data.media.image import open_image
from vlmft.types import Video

_JPEG_QUALITY = 90


def data_uris(file: MediaFile, max_side: int, num_frames: int, decoder: Decoder) -> list[str]:
    """A picture, or `num_frames` frames spread evenly over a video, as JPEG whose longer side is at most `max_side`.

    Raises:
        DataError: the file cannot be decoded.
    """
    if file.kind == "image":
        return [_data_uri(open_image(file.path), max_side)]
    from vlmft.data.media.video import choose_frames, probe_video, read_frames

    video = Video(file.path)
    indices = choose_frames(probe_video(video), VideoRule(num_frames=num_frames))
    return [_data_uri(Image.fromarray(frame), max_side) for frame in read_frames(video, indices, decoder)]


def _data_uri(picture: Image.Image, max_side: int) -> str:
    factor = max_side / max(picture.size)
    if factor < 1:
        width, height = (max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
