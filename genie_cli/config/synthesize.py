"""The configuration of ``genie synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from genie_cli.config.base import LongStage, ModelConfig
from genie_cli.config.marks import NOT_DETERMINING, Flag


def _read_weights(value: Any) -> Any:
    """Weights as they are given on a command line: ``["total-variation=0.1"]``."""
    if not isinstance(value, list | tuple):
        return value
    weights = {}
    for text in value:
        name, _, weight = str(text).rpartition("=")
        if not name:
            raise ValueError(f"{text!r} must be NAME=WEIGHT, such as total-variation=0.1")
        weights[name] = weight
    return weights


Terms = Annotated[dict[str, float], BeforeValidator(_read_weights)]
"""Name -> weight."""


class SynthesizeConfig(LongStage):
    """``genie synthesize`` (GENIE-D, paper section 3.1)."""

    num_images: Annotated[int, Flag("Recipe", "--n --num-images")] = Field(1024, ge=2, le=10_000_000)
    """Images to synthesize."""
    num_steps: Annotated[int, Flag("Recipe")] = Field(4000, ge=1)
    """Optimisation steps of each batch."""
    batch_size: Annotated[int, Flag("Recipe")] = Field(128, ge=2)
    """Images optimised together. Each batch has its own generator and latents."""
    preset: Annotated[str, Flag("Recipe")] = "genie"
    """Recipe: genie, zeroq, swing, gba, latent, genie-fast, genie-tuned, mixmix, gdfq, qimera, kw, intraq, zaq."""
    batches_at_once: Annotated[int | None, NOT_DETERMINING] = Field(None, ge=1)
    """Batches that advance together, each for itself; null: several where one is small for a GPU."""
    seed: Annotated[int, Flag("Run", before="device")] = Field(0, ge=0, lt=2**63)
    """Seed of every random number."""
    generator: Annotated[bool, Flag("Recipe")] = True
    """Learn a generator, or the pixels themselves. Pixels that learn directly are ZeroQ's way."""
    latents: Annotated[Literal["learned", "sampled"] | None, Flag("Recipe", default="learned")] = None
    """The generator's input: learned, or sampled in every step (GBA)."""
    latent_dim: int = Field(256, ge=1, le=2**20)
    """Length of a latent vector."""
    latent_lr: float = Field(0.1, gt=0)
    """Learning rate of the latents."""
    latent_lr_factor: float = Field(0.1, gt=0, lt=1)
    """Factor on the latents' rate when the loss has stopped falling."""
    latent_lr_patience: int = Field(100, ge=1)
    """Steps without a lower loss before the latents' rate falls."""
    latent_min_lr: float = Field(1e-4, gt=0)
    """Lowest rate of the latents."""
    generator_lr: float = Field(0.01, gt=0)
    """Learning rate of the generator."""
    generator_lr_decay: float = Field(0.95, gt=0, le=1)
    """Factor on the generator's rate every `generator_lr_decay_every` steps."""
    generator_lr_decay_every: int = Field(100, ge=1)
    """Steps between two decays of the generator's rate."""
    tanh: bool = True
    """The generator ends in a tanh, as the paper's; false: its pixels have no bounds, as learned pixels have none.

    Few steps drive a tanh to its ends, and the images to two tones."""
    swing: Annotated[bool, Flag("Recipe")] = True
    """Shift the input of strided convolutions at random (swing convolution, section 3.1.1)."""
    pixel_lr: float = Field(0.1, gt=0)
    """Learning rate of the pixels where there is no generator; it falls as the latents' does."""
    statistics_weight: float = Field(1.0, ge=0)
    """Weight of the batch-norm statistics loss (Eq. 5)."""
    image_loss_weight: float = Field(1.0, ge=0)
    """Weight of each image's own mean and std against those of the pixel prior."""
    brightness_std: float = Field(0.0, ge=0, lt=1)
    """Spread of the images' own brightness, in standard deviations of the pixel prior; 0: all have its mean."""
    contrast_std: float = Field(0.0, ge=0, le=1)
    """Spread of the logarithm of the images' own contrast; 0: all have that of the pixel prior."""
    conditioning: Literal["none", "label", "superposed"] = "none"
    """Latents of a class (GDFQ), or between classes (Qimera), with learned class embeddings."""
    num_mixed: int = Field(2, ge=1, le=2**20)
    """Classes that are superposed (Qimera: 2 for CIFAR-10, 10 for CIFAR-100, 500 for ImageNet)."""
    mix_prob: float = Field(0.4, ge=0, le=1)
    """Probability that an image's classes are superposed."""
    class_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of the teacher's logits against assigned classes (GDFQ, KW)."""
    soft_class_weight: float = Field(0.0, ge=0)
    """Weight of the soft inception loss: the class's probability against a drawn confidence (IntraQ)."""
    soft_class_lowest: float = Field(0.95, gt=0, le=1)
    """The lowest confidence that is drawn (0.95 for CIFAR-10, 0.6 for CIFAR-100, 1 for ImageNet)."""
    margin_weight: float = Field(0.0, ge=0)
    """Weight of the marginal distance: features neither on nor far from their class's centre (IntraQ)."""
    margin_low: float = Field(0.05, ge=0, le=2)
    """Lowest cosine distance of features from their class's centre that costs nothing."""
    margin_high: float = Field(0.8, ge=0, le=2)
    """Highest cosine distance of features from their class's centre that costs nothing."""
    crop_prob: float = Field(0.0, ge=0, le=1)
    """Probability that the teacher sees a crop of an image, enlarged: local object reinforcement (IntraQ)."""
    crop_lowest: float = Field(0.5, gt=0, le=1)
    """Smallest area of such a crop, as a share of the image."""
    smoothness_weight: float = Field(0.0, ge=0)
    """Weight of the image prior: squared distance to the image smoothed by a 3x3 Gaussian (KW)."""
    student: Annotated[Path | None, Flag("Model", default="none"), NOT_DETERMINING] = None
    """Quantized folder of the same network, which the images are to tell from it (ZAQ)."""
    discrepancy_weight: float = Field(0.0, ge=0)
    """Weight of the difference between the logits of teacher and student, which is made large (ZAQ)."""
    terms: Annotated[Terms | None, Flag("Recipe", "--term", metavar="NAME=WEIGHT", repeated=True)] = None
    """Weight of a term of the loss that a plug-in registers, e.g. total-variation=0.1 (may be repeated)."""
    plugins: Annotated[
        tuple[Path, ...] | None, Flag("Recipe", "--plugin", metavar="FILE.py", repeated=True), NOT_DETERMINING
    ] = None
    """File that registers terms or presets (may be repeated): code that is run."""
    other_teachers: Annotated[tuple[ModelConfig, ...], NOT_DETERMINING] = ()
    """More networks whose statistics the images fit, each with its own normalisation (MixMix)."""
    image_dtype: Literal["float16", "uint8"] = "float16"
    """Type of the stored images: normalised float16, or uint8 pixels clipped to 0..255."""
    out: Annotated[Path, Flag("Output"), NOT_DETERMINING] = Path("images.safetensors")
    """Image set to write."""
    performance: Annotated[Path | None, Flag("Output"), NOT_DETERMINING] = None
    """Seconds and peak memory to write, as JSON."""
    log: Annotated[Path | None, Flag("Output"), NOT_DETERMINING] = None
    """Loss curve to write, as CSV.

    Its columns are batch, step, loss, and latent_lr, which is the pixels' rate where there is no generator."""
    tensorboard: Annotated[Path | None, Flag("Output", metavar="DIR"), NOT_DETERMINING] = None
    """Folder to write the losses into while the work goes on, for TensorBoard."""

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesizeConfig:
        if not self.generator:
            if self.latents is not None:
                raise ValueError(f"latents = '{self.latents}' need a generator, which --no-generator takes away")
            if self.conditioning != "none":
                raise ValueError(f"conditioning = '{self.conditioning}' needs a generator: leave out --no-generator")
        if self.margin_low > self.margin_high:
            raise ValueError(f"margin_low = {self.margin_low} is above margin_high = {self.margin_high}")
        if self.discrepancy_weight and self.student is None:
            raise ValueError("discrepancy_weight needs a quantized student: give --student DIR")
        if self.student is not None and not self.discrepancy_weight:
            raise ValueError(f"student = {self.student} is not used without a discrepancy_weight above 0")
        return self

    @property
    def learns_latents(self) -> bool:
        """True if the generator's input learns."""
        return self.generator and self.latents != "sampled"
