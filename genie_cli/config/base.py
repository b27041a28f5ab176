"""The base of all configurations, the network and its input, and the keys that every stage has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genie_cli.config.image_size import ImageSize, height_and_width
from genie_cli.config.marks import NOT_DETERMINING, Flag


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys and NaN refused, field docstrings kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class InputSpec(Frozen):
    """A network's input: images ``[B, num_channels, height, width]``, normalised by mean and std.

    Normalised value = (pixel / 255 - mean) / std, per channel.
    """

    num_channels: int = Field(3, ge=1)
    size: ImageSize = 224
    """Side of a square input in pixels, else height and width."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize_size: ImageSize | None = None
    """Image files: before the centre crop they are resized until they just cover this; None: no resize.

    A number is the shorter side's."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return height_and_width(self.size)[0]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return height_and_width(self.size)[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.num_channels, self.height, self.width

    @model_validator(mode="after")
    def _fits(self) -> InputSpec:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.num_channels:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.num_channels} channels; give one per channel"
                )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class ModelConfig(Frozen):
    """The network, its weights and its input; the ``model`` section serves every command."""

    name: Annotated[str, Flag("Model", "--model", default="", several="more than one: images that fit them all")] = (
        "digits_resnet"
    )
    """A name of `genie models`, timm:NAME, or FILE.py:FACTORY, code that is run."""
    weights: Annotated[str | None, Flag("Model", default="the model's own", several="one per --model")] = None
    """A torchvision weights name, or a local .safetensors or .pth file."""
    weights_key: Annotated[str | None, Flag("Model", default="the one set of weights")] = None
    """Place of the weights in their file, such as state_dict_ema, where it holds more than one set."""
    reparameterize: Annotated[bool, Flag("Model")] = False
    """Merge the branches of a network such as RepVGG by its modules' own methods.

    These are reparameterize(), switch_to_deploy(), merge_kernel(), fuse() or fuse_convs(). Images are synthesized for
    the network as it was trained, whose batch norms hold the statistics."""
    input_size: Annotated[ImageSize | None, Flag("Model", default="the model's own", metavar="SIZE")] = None
    """Height and width of the input in pixels, such as 360x480, or the side of a square one."""
    num_channels: Annotated[int | None, Flag("Model", default="the model's own")] = Field(None, ge=1, le=64)
    """Channels of the input."""
    mean: Annotated[tuple[float, ...] | None, Flag("Model", default="the model's own")] = None
    """Normalisation: mean of each channel, e.g. 0.5,0.5,0.5."""
    std: Annotated[tuple[float, ...] | None, Flag("Model", default="the model's own")] = None
    """Normalisation: standard deviation of each channel."""
    logits: Annotated[str | None, Flag("Model", default="the only one that can be")] = None
    """Output that holds the class scores, such as classes or head.cls, where a network returns several tensors."""

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take ``0.5,0.5,0.5`` and a single number too."""
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, int | float) else value


class Stage(Frozen):
    """Keys of every stage: the device, and how it computes."""

    device: Annotated[str, Flag("Run"), NOT_DETERMINING] = "auto"
    """auto, cpu, cuda or cuda:INDEX."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Flag("Run")] = "auto"
    """Arithmetic: fp32, bf16, or auto (bf16 where it is faster).

    It is that of the networks' forward and backward passes, and of kept activations."""
    deterministic: Annotated[bool, Flag("Run")] = True
    """CUDA: kernels that give the same bytes in every run. CPU kernels always do."""


class LongStage(Stage):
    """Keys of a stage of hours, which can go on after it was killed."""

    budget: Annotated[
        Literal["quick", "balanced", "paper"] | None, Flag("Recipe", before="preset"), NOT_DETERMINING
    ] = None
    """Named number of images and steps: quick, balanced or paper. Keys that are set themselves win over it.

    quick: 256 images, 120 steps of each batch, 200 of each unit. balanced: 1024, 250 and 1000. paper: 1024, 4000 and
    20000, which are the defaults."""
    checkpoint_interval: Annotated[float, Flag("Run"), NOT_DETERMINING] = Field(180.0, ge=0)
    """Seconds between checkpoints inside a batch or unit."""
    fresh: Annotated[bool, Flag("Run"), NOT_DETERMINING] = False
    """Start anew instead of going on where a killed run was. What that run left is deleted."""

    def determining(self) -> dict[str, Any]:
        """The keys that determine the result, as JSON values: for artifacts, and to know a killed run again."""
        others = {name for name, field in type(self).model_fields.items() if NOT_DETERMINING in field.metadata}
        return self.model_dump(mode="json", exclude=others)
