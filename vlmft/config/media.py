"""Choices about pictures and videos that a run makes in `model.image` and `model.video`, and an entry may make anew.

An entry's value replaces the run's where it is given; null leaves the run's, and there the checkpoint's own.
"""

from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator

from vlmft.config.spec import Spec

Decoder = Literal["pyav", "decord", "torchcodec"]
CoordinateForm = Literal["pixels", "unit", "thousand"]
"""How a dataset writes boxes and points: pixels of the file's picture, 0 to 1, or 0 to 1000 of its sides."""

CoordinateStyle = Literal["seen_pixels", "thousand", "unit"]
"""How a family was taught to write them: pixels of the picture as it sees it, 0 to 1000, or 0 to 1."""

_DIMENSIONS = ("height", "width")


class PixelBudget(Spec):
    """How large the model sees a picture, or each frame of a video. All null: as the checkpoint says."""

    min_pixels: int | None = Field(default=None, ge=1, description="area below which it is enlarged")
    max_pixels: int | None = Field(default=None, ge=1, description="area above which it is shrunk")
    height: int | None = Field(default=None, ge=1, description="with width: one fixed size, rounded to whole patches")
    width: int | None = Field(default=None, ge=1, description="with height: one fixed size, rounded to whole patches")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width go together; give both, or neither")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}; change one of the two"
            )
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """The fixed (height, width), before rounding; None where the size follows from the picture's own."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def over(self, run: Self) -> Self:
        """These choices, with the run's where they are null.

        Raises:
            pydantic.ValidationError: the two together contradict each other.
        """
        return _merged(run, self, _DIMENSIONS)


class VideoRule(PixelBudget):
    """Which frames of a video the model sees, and how large.

    `num_frames` are spread evenly; `fps` takes so many a second, at least `min_frames` and at most `max_frames`. Never
    both; neither leaves it to the run, and there to the checkpoint.
    """

    num_frames: int | None = Field(default=None, ge=1, description="frames, spread evenly over the video")
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="frames for each second")
    min_frames: int | None = Field(default=None, ge=1, description="with fps: at least so many")
    max_frames: int | None = Field(default=None, ge=1, description="with fps: at most so many")
    decoder: Decoder | None = Field(default=None, description="pyav, decord or torchcodec")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError(
                f"num_frames={self.num_frames} and fps={self.fps:g} say two things; give one, and null for the other"
            )
        if self.min_frames and self.max_frames and self.min_frames > self.max_frames:
            raise ValueError(
                f"min_frames={self.min_frames} is more than max_frames={self.max_frames}; change one of the two"
            )
        return self

    def over(self, run: Self) -> Self:
        """As `PixelBudget.over`; a rule for the frames replaces the run's whole one."""
        return _merged(run, self, _DIMENSIONS, ("num_frames", "fps"))


class Augmentation(Spec):
    """Random changes of each picture and video, drawn from (seed, epoch, sample id); held-out samples get none."""

    crop: float = Field(default=1.0, gt=0, le=1, description="least share of each side that a random crop keeps")
    flip: float = Field(default=0.0, ge=0, le=1, description="chance of a mirror image (left and right change places)")
    colour: float = Field(
        default=0.0, ge=0, le=1, description="how far brightness, contrast and saturation move, as a share"
    )
    jpeg: int | None = Field(default=None, ge=1, le=95, description="lowest quality of a random JPEG compression")


class MediaRules(Spec):
    """What an entry says of its media; what it leaves open is the run's."""

    image: PixelBudget = Field(default=PixelBudget(), description="how large pictures are seen")
    video: VideoRule = Field(default=VideoRule(), description="which frames of a video are seen, and how large")
    max_vision_tokens: int | None = Field(default=None, ge=1, description="of a whole sample; more is an error")
    augment: Augmentation | None = Field(default=None, description="random changes while training")
    coordinates: CoordinateForm | None = Field(default=None, description="how texts write boxes and points")

    def over(self, run: "MediaRules") -> "MediaRules":
        """These rules with the run's where they are open. Raises as `PixelBudget.over`."""
        return MediaRules(
            image=self.image.over(run.image),
            video=self.video.over(run.video),
            max_vision_tokens=self.max_vision_tokens or run.max_vision_tokens,
            augment=self.augment or run.augment,
            coordinates=self.coordinates or run.coordinates,
        )


B = TypeVar("B", bound=PixelBudget)


def _merged(run: B, own: B, *together: tuple[str, ...]) -> B:
    """`own` over `run`; where `own` gives one of the fields that go `together`, all of them are its own."""
    given = {name for name in type(own).model_fields if getattr(own, name) is not None}
    for group in together:
        if given & set(group):
            given |= set(group)
    return type(own)(**{name: getattr(own if name in given else run, name) for name in type(own).model_fields})
