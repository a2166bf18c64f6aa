"""What is decided about a sample's pictures and videos before any is decoded: what part of each is seen, and how large.

Everything here reads headers alone, so counting a sample's tokens and encoding it cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmft.config.media import MediaRules
from vlmft.data.hashing import mix, salt
from vlmft.data.media.augment import View, augmented, draw_view
from vlmft.data.media.coordinates import marked_boxes, rewrite
from vlmft.data.media.image import image_size, open_pixels
from vlmft.data.media.video import choose_frames, probe_video, read_frames
from vlmft.errors import DataError
from vlmft.models.spec import Media as EncodedMedia
from vlmft.models.spec import MediaKind, MediumText, ModelSpec, Pixels
from vlmft.types import Clip, Image, Media, Sample, Video

_AUGMENT = salt("augment")


@dataclass(frozen=True, slots=True)
class PlannedMedium:
    """A picture or video with everything that is known before it is decoded."""

    medium: Media
    rules: MediaRules
    view: View
    """The part of the original that is seen."""
    written: MediumText
    """What its placeholder becomes."""
    clip: Clip | None = None
    """Of a video: the chosen frames, at the view's size."""
    frames: "np.ndarray[Any, np.dtype[np.int64]] | None" = None
    """Of a video: the chosen frames' numbers."""
    key: int = 0
    """Seeds what is drawn for it; 0 where nothing is."""
    alone: bool = True
    """Of a picture: it is its sample's only one."""

    @property
    def kind(self) -> MediaKind:
        """What its placeholder says that it is."""
        return "image" if isinstance(self.medium, Image) else "video"

    def picture(self) -> Pixels:
        """A picture as the tower is to see it, before resizing. Raises `DataError` as `open_pixels`."""
        assert isinstance(self.medium, Image)
        return augmented(open_pixels(self.medium), self.view, self.rules.augment, self.key)

    def video(self) -> Pixels:
        """A video's chosen frames, before resizing. Raises `DataError` as `read_frames`."""
        assert isinstance(self.medium, Video) and self.frames is not None
        decoder = self.rules.video.decoder or "pyav"
        return augmented(read_frames(self.medium, self.frames, decoder), self.view, self.rules.augment, self.key)


class MediaPlanner:
    """Plans samples for one checkpoint; holds no weights and may be pickled."""

    def __init__(self, family: ModelSpec, processor: Any) -> None:
        self.family, self.processor = family, processor
        self._merged: dict[MediaRules, MediaRules] = {}

    def plan(self, sample: Sample, key: int | None) -> tuple[Sample, list[PlannedMedium]]:
        """Decide about each medium of `sample`, in reading order; its texts' boxes follow.

        Args:
            key: seeds the augmentation of a sample that is trained on; None: it is seen as it is.

        Returns:
            The sample, with boxes and points as the family writes them; and its media.

        Raises:
            DataError: a header cannot be read, the family takes no medium of this kind or shape, a box lies outside, or
                there are more vision tokens than `max_vision_tokens`.
        """
        rules = self._rules(sample.rules)
        if key is None and rules.augment is not None:
            rules = rules.model_copy(update={"augment": None})
        boxes = marked_boxes(sample, rules.coordinates) if rules.coordinates else [()] * len(sample.media)
        planned = [
            self._medium(medium, rules, _medium_key(key, number), keep, alone=len(sample.images) == 1)
            for number, (medium, keep) in enumerate(zip(sample.media, boxes, strict=True))
        ]
        self._refuse_excess(planned, rules)
        if rules.coordinates:
            seen = [self._seen_size(item) for item in planned]
            views = [item.view for item in planned]
            sample = rewrite(sample, views, seen, rules.coordinates, self.family.coordinate_style)
        return sample, planned

    def encode(self, planned: PlannedMedium) -> EncodedMedia:
        """Decode a medium and resize it for the tower. Raises `DataError` where it cannot be decoded."""
        if planned.clip is None:
            return self.family.encode_image(self.processor, planned.picture(), planned.rules.image, planned.alone)
        return self.family.encode_video(self.processor, planned.video(), planned.clip, planned.rules.video)

    def _rules(self, entry: MediaRules) -> MediaRules:
        if entry not in self._merged:
            self._merged[entry] = entry.over(self.family.media_rules)
        return self._merged[entry]

    def _medium(self, medium: Media, rules: MediaRules, key: int, keep: Sequence[Any], alone: bool) -> PlannedMedium:
        if isinstance(medium, Image):
            view = draw_view(rules.augment, *image_size(medium), key, keep)
            written = self.family.image_text(self.processor, (view.crop_height, view.crop_width), rules.image, alone)
            return PlannedMedium(medium, rules, view, written, key=key, alone=alone)
        if "video" not in self.family.placeholders(self.processor):
            raise DataError(
                f"{medium.path} is a video, and {type(self.family).__name__} takes none; leave its samples out, or "
                "take a family that does"
            )
        info = probe_video(medium)
        frames = choose_frames(info, rules.video)
        view = draw_view(rules.augment, info.height, info.width, key, keep)
        clip = Clip(view.crop_height, view.crop_width, info.timestamps[frames].tolist(), _duration_s(info.timestamps))
        written = self.family.video_text(self.processor, clip, rules.video)
        return PlannedMedium(medium, rules, view, written, clip, frames, key)

    def _seen_size(self, planned: PlannedMedium) -> tuple[int, int]:
        if planned.clip is not None:
            return self.family.seen_frame(self.processor, planned.clip, planned.rules.video)
        size = planned.view.crop_height, planned.view.crop_width
        return self.family.seen_image(self.processor, size, planned.rules.image, planned.alone)

    def _refuse_excess(self, planned: Sequence[PlannedMedium], rules: MediaRules) -> None:
        total = sum(item.written.num_features for item in planned)
        if rules.max_vision_tokens is not None and total > rules.max_vision_tokens:
            raise DataError(
                f"{total} vision tokens exceed max_vision_tokens={rules.max_vision_tokens}; raise it, or lower "
                "image.max_pixels, video.max_pixels or video.fps (nothing is cut)"
            )


def _duration_s(timestamps: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """The last frame is shown as long as the others are on average."""
    return float(timestamps[-1] * len(timestamps) / max(len(timestamps) - 1, 1))


def _medium_key(key: int | None, number: int) -> int:
    if key is None:
        return 0
    return int(mix(np.array([key], dtype=np.uint64), _AUGMENT, number)[0])
