"""Typed, frozen configurations of the commands, and how they are put together.

Precedence: defaults < preset < common section < command section < scheme < command-line flags.
Unknown keys are refused with the nearest known key. The field docstrings are the reference of
``params.yaml``; the defaults are the paper's (method section 4 and the authors' constants).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from genie_cli.errors import InputError, UsageError, nearest
from genie_cli.sizes import parse_size

MIN_BITS, MAX_BITS = 2, 8
_ROUNDING_LR, _ACTIVATION_STEP_LR, _PAPER_STEPS = 1e-3, 4e-5, 20000
"""The paper's rates of the softbits and the activation step sizes, and the steps that they are for."""
_LARGEST_ROUNDING_LR = 0.1
"""The most that the softbits' rate grows to where there are fewer steps."""
_LARGEST_WEIGHT_LR = 0.01
"""The same for a weight behind nearest rounding, in its step sizes: more of it throws whole networks off."""

MemorySize = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
"""Bytes, also written as ``2GiB`` or ``500 MB``."""


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys and NaN refused, field docstrings kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class InputSpec(Frozen):
    """The input of a network: images ``[B, num_channels, size, size]``, normalised by mean and std.

    Normalised value = (pixel / 255 - mean) / std, per channel.
    """

    num_channels: int = Field(3, ge=1)
    size: int = Field(224, ge=1)
    """Side of the square input, pixels."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize_size: int | None = None
    """Image files: the shorter side is resized to this before the centre crop; None: no resize."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

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

    name: str = "digits_resnet"
    """Model SPEC: torchvision, embedded or CIFAR name, or path/to/file.py:factory."""
    weights: str | None = None
    """A torchvision weights name, or a local .safetensors or .pth file."""
    input_size: int | None = Field(None, ge=8, le=4096)
    num_channels: int | None = Field(None, ge=1, le=64)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take ``0.5,0.5,0.5`` and a single number too."""
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, int | float) else value


class Stage(Frozen):
    """Keys that every stage takes and that do not determine its result."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:INDEX."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks' forward and backward passes, and of kept activations; auto: bf16 where it pays."""
    deterministic: bool = True
    """CUDA: kernels that give the same bytes in every run. CPU kernels always do."""


class LongStage(Stage):
    """Further keys of a stage that takes hours, so that it can go on after it was killed."""

    checkpoint_interval: float = Field(180.0, ge=0)
    """Seconds between two checkpoints inside a batch or unit."""
    fresh: bool = False
    """Start anew: throw away what an earlier run of the same command left."""


class SynthesizeConfig(LongStage):
    """``genie synthesize`` (GENIE-D, paper section 3.1)."""

    preset: str = "genie"
    num_images: int = Field(1024, ge=2, le=10_000_000)
    num_steps: int = Field(4000, ge=1)
    """Optimisation steps per batch."""
    batch_size: int = Field(128, ge=2)
    """Images optimised together; each batch has its own generator and latents."""
    batches_at_once: int | None = Field(None, ge=1)
    """Batches that advance together, each for itself; None: several where one is small for a GPU."""
    seed: int = Field(0, ge=0, lt=2**63)
    generator: bool = True
    """Images come out of a generator that learns; False: their pixels learn directly (ZeroQ)."""
    latents: Literal["learned", "sampled"] | None = None
    """The generator's input: learned (the default), or drawn anew in every step (GBA)."""
    latent_dim: int = Field(256, ge=1, le=2**20)
    latent_lr: float = Field(0.1, gt=0)
    latent_lr_factor: float = Field(0.1, gt=0, lt=1)
    """Factor on the latents' rate when the loss has stopped falling."""
    latent_lr_patience: int = Field(100, ge=1)
    latent_min_lr: float = Field(1e-4, gt=0)
    generator_lr: float = Field(0.01, gt=0)
    generator_lr_decay: float = Field(0.95, gt=0, le=1)
    generator_lr_decay_every: int = Field(100, ge=1)
    swing: bool = True
    """Replace strided convolutions by swing convolutions (section 3.1.1)."""
    pixel_lr: float = Field(0.1, gt=0)
    """Rate of the pixels where there is no generator; it falls as the latents' does."""
    statistics_weight: float = Field(1.0, ge=0)
    """Weight of the batch-norm statistics loss (Eq. 5)."""
    image_loss_weight: float = Field(1.0, ge=0)
    """Weight of each image's own mean and std against 0 and 1 in normalised space."""
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
    margin_high: float = Field(0.8, ge=0, le=2)
    crop_prob: float = Field(0.0, ge=0, le=1)
    """Probability that the teacher sees a crop of an image, enlarged: local object reinforcement (IntraQ)."""
    crop_lowest: float = Field(0.5, gt=0, le=1)
    """Smallest area of such a crop, as a share of the image."""
    smoothness_weight: float = Field(0.0, ge=0)
    """Weight of the image prior: squared distance to the image smoothed by a 3x3 Gaussian (KW)."""
    student: Path | None = None
    """A quantized folder of the same teacher, which the images are to tell from it (ZAQ)."""
    discrepancy_weight: float = Field(0.0, ge=0)
    """Weight of the difference between the logits of teacher and student, which is made large."""
    other_teachers: tuple[ModelConfig, ...] = ()
    """More networks whose statistics the images fit, each with its own normalisation (MixMix)."""
    image_dtype: Literal["float16", "uint8"] = "float16"
    """Format of the stored images: normalised float16, or pixels clipped to 0..255."""
    out: Path = Path("images.safetensors")
    performance: Path | None = None
    """JSON file for seconds and peak memory."""
    log: Path | None = None
    """CSV of the loss: batch, step, loss, latent_lr (the pixels' rate where there is no generator)."""

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
        if self.preset == "mixmix" and not self.other_teachers:
            raise ValueError("preset = 'mixmix' needs several networks: give --model more than once")
        if self.student is not None and not self.discrepancy_weight:
            raise ValueError(f"student = {self.student} is not used without a discrepancy_weight above 0")
        return self

    @property
    def learns_latents(self) -> bool:
        """True if the generator's input learns."""
        return self.generator and self.latents != "sampled"


class QuantizeConfig(LongStage):
    """``genie quantize`` (GENIE-M, paper section 3.2)."""

    preset: str = "genie-m"
    protocol: str = "genie"
    """Who gets which bits; `genie inspect MODEL --protocol NAME` prints it."""
    images: Annotated[str, BeforeValidator(str)] = "images.safetensors"
    """An image set, or real images: digits, cifar10:FOLDER, imagefolder:PATH, a .safetensors with labels."""
    num_images: int | None = Field(None, ge=2)
    """So many images: the first of an image set, a draw under the seed of real ones; default all."""
    weight_bits: int = Field(4, ge=MIN_BITS, le=MAX_BITS)
    activation_bits: int = Field(4, ge=MIN_BITS, le=MAX_BITS)
    bits_override: dict[str, tuple[int, int]] | None = None
    """Shell-style pattern over layer names -> bits of the layer's weight and of its input, which rank above the
    protocol: `{layer1.*: [8, 8]}`, quoted where it begins with a star. Later patterns win."""
    num_steps: int = Field(20000, ge=1)
    """Reconstruction steps per unit."""
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    reconstruct: bool = True
    """Learn rounding and step sizes unit by unit; False: ranges only, nearest rounding."""
    data_free: bool = False
    """Without images: equalised weights, ranges and bias correction from the batch-norm statistics (DFQ)."""
    equalize: bool = True
    """DFQ: cross-layer equalization. It helps networks of uneven channels; on others per-channel grids do better."""
    unit: Literal["layer", "block", "network"] = "block"
    """The layers learned together: one weight layer, a residual block (single layers outside), or all."""
    rounding: Literal["nearest", "adaround", "genie", "adaquant"] = "genie"
    """The way that weights learn: not at all; softbits on a fixed step size (AdaRound); softbits and step size
    together (Eq. 10); the weight itself behind nearest rounding, with its step size (AdaQuant, LSQ)."""
    loss: Literal["squared", "kl"] = "squared"
    """The loss at a unit's output: the squared error, or the KL divergence of the class probabilities."""
    weight_range: Literal["search", "minmax"] = "search"
    """Initial weight step size: least |w - q(w)|^2.4 over 100 clipping ratios, or the full range."""
    activation_range: Literal["search", "minmax"] = "search"
    weight_step_lr: float = Field(1e-4, ge=0)
    """Rate of the weight step sizes, in the units of `weight_step_space`."""
    weight_step_space: Literal["checkpoint", "relative"] = "checkpoint"
    """The quantity that the rate moves: the step of the unfolded weight, as in the paper, or step / start."""
    activation_step_lr: float | None = Field(None, ge=0)
    """Rate of the activation step sizes. Default: the paper's 4e-5 for its 20000 steps, and for fewer more with the
    square root of their share: in proportion costs accuracy at 4 bits."""
    rounding_lr: float | None = Field(None, ge=0)
    """Rate of the softbits' logits; of the weights, in step sizes, where `rounding` is adaquant. Default: the
    paper's 0.001 for its 20000 steps, and in proportion more for fewer, up to 0.1 (adaquant
    0.01): the way is as long."""
    round_weight: float = Field(1.0, ge=0)
    """Weight of the rounding regularizer."""
    warmup: float = Field(0.2, ge=0, lt=1)
    """Share of the steps before the rounding regularizer starts."""
    beta_start: float = Field(20.0, gt=0)
    beta_end: float = Field(2.0, gt=0)
    drop_prob: float = Field(0.5, ge=0, le=1)
    """QDrop: probability that an activation element keeps full precision during reconstruction."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Share of the images that is never trained on; 0.125 where `patience` is given and this is 0."""
    patience: int | None = Field(None, ge=2)
    """End a unit once its held-out loss has not improved for so many steps; default: take all steps."""
    memory_limit: MemorySize | None = None
    """Most memory for calibration activations and the step's working set, e.g. 2GiB; default from the free memory."""
    out: Path = Path("quantized")
    performance: Path | None = None
    """JSON file for seconds and peak memory."""

    @property
    def own_rounding_lr(self) -> float:
        """`rounding_lr`, or its default for these steps."""
        if self.rounding_lr is not None:
            return self.rounding_lr
        largest = _LARGEST_WEIGHT_LR if self.rounding == "adaquant" else _LARGEST_ROUNDING_LR
        return min(_ROUNDING_LR * max(1.0, _PAPER_STEPS / self.num_steps), largest)

    @property
    def own_activation_step_lr(self) -> float:
        """`activation_step_lr`, or its default for these steps."""
        if self.activation_step_lr is not None:
            return self.activation_step_lr
        return _ACTIVATION_STEP_LR * math.sqrt(max(1.0, _PAPER_STEPS / self.num_steps))

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeConfig:
        if self.loss == "kl" and self.unit != "network":
            raise ValueError(f"loss = 'kl' compares classes: it needs unit = 'network', not '{self.unit}'")
        if self.reconstruct and self.rounding == "nearest" and self.activation_step_lr == 0:
            raise ValueError("rounding = 'nearest' with activation_step_lr = 0 leaves nothing to learn")
        return self

    @field_validator("bits_override", mode="before")
    @classmethod
    def _two_bits_each(cls, value: Any) -> Any:
        """Name the pattern whose bits cannot be used."""
        for pattern, bits in value.items() if isinstance(value, Mapping) else ():
            listed = bits if isinstance(bits, list | tuple) else ()
            if len(listed) != 2 or any(type(n) is not int or not MIN_BITS <= n <= MAX_BITS for n in listed):
                raise ValueError(
                    f"{pattern!r} needs two numbers from {MIN_BITS} to {MAX_BITS}, bits of weight and input: [8, 8]"
                )
        return value


class EvaluateConfig(Stage):
    """``genie evaluate``."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    data: str | None = None
    """digits, cifar10:FOLDER, imagefolder:PATH or a .safetensors with images and labels."""
    quantized: Path | None = None
    """A folder written by `genie quantize`; without it the teacher is evaluated."""
    folded: bool = False
    """Evaluate the teacher with its batch norms folded."""
    batch_size: int = Field(128, ge=1)
    num_images: int | None = Field(None, ge=1)
    """Evaluate the first so many images only; default all."""
    resize_size: Annotated[int, Field(ge=1)] | Literal["none"] | None = None
    """Image files: shorter side before the centre crop; default the model's, else size / 0.875."""
    num_workers: int = Field(0, ge=0)
    """Processes that decode image files; 0 decodes in this one."""
    out: Path | None = None


SECTIONS: dict[str, type[Frozen]] = {
    "model": ModelConfig,
    "synthesize": SynthesizeConfig,
    "quantize": QuantizeConfig,
    "evaluate": EvaluateConfig,
}
COMMON_KEYS = ("device", "precision", "deterministic", "seed")
"""Keys of the `common` section: each command takes those that it knows."""

ConfigT = TypeVar("ConfigT", bound=Frozen)


def build(cls: type[ConfigT], *layers: Mapping[str, Any], where: str = "") -> ConfigT:
    """A configuration from layers of keys, later ones first in rank.

    Raises:
        UsageError: an unknown key or a value out of range, named with its bound.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        check_keys(layer, cls.model_fields, where)
        merged.update(layer)
    try:
        return cls(**merged)
    except ValidationError as error:
        raise UsageError(_describe(error, where)) from None


def check_keys(section: Mapping[str, Any], known: Any, where: str) -> None:
    """Refuse keys outside `known`, naming the nearest one."""
    for key in section:
        if key not in known:
            place = f" in section '{where}'" if where else ""
            raise UsageError(f"Unknown key '{key}'{place}.{nearest(str(key), known)}")


def _describe(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").partition(" for <class")[0]
    message = message[:1].lower() + message[1:]
    what = f"{first['loc'][0]} = {_shown(first['input'])} cannot be used" if first["loc"] else where
    return f"{what}: {message}."


def _shown(value: Any) -> str:
    """A value in a message, on one line of bearable length."""
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Params:
    """A read params file: sections of known keys, schemes apart."""

    def __init__(self, content: Mapping[str, Any], path: Path | None = None) -> None:
        """Check the shape and the keys of `content`, values are checked by `build`."""
        self.path = path
        self._sections: dict[str, dict[str, Any]] = {}
        self.schemes: dict[str, dict[str, Any]] = {}
        known = [*SECTIONS, "common"]
        for name, section in content.items():
            if name not in known:
                hint = nearest(str(name), known)
                raise UsageError(f"Unknown section '{name}' in {path}: the sections are {', '.join(known)}.{hint}")
            self._sections[name] = _mapping(section, f"Section '{name}' of {path}")
        check_keys(self._sections.get("common", {}), COMMON_KEYS, "common")
        schemes = self._sections.get("quantize", {}).pop("schemes", None)
        for name, scheme in _mapping(schemes, f"Section 'quantize.schemes' of {path}").items():
            self.schemes[str(name)] = _mapping(scheme, f"Scheme '{name}' of {path}")
            check_keys(self.schemes[str(name)], QuantizeConfig.model_fields, f"quantize.schemes.{name}")
        for name, cls in SECTIONS.items():
            check_keys(self._sections.get(name, {}), cls.model_fields, name)

    def section(self, name: str) -> dict[str, Any]:
        """The keys for one command: the common ones that it knows, then its own."""
        known = SECTIONS[name].model_fields
        common = {k: v for k, v in self._sections.get("common", {}).items() if k in known}
        return {**common, **self._sections.get(name, {})}

    def scheme(self, name: str) -> dict[str, Any]:
        """The keys of one scheme of `quantize.schemes`."""
        if name not in self.schemes:
            known = ", ".join(self.schemes) or "none"
            raise UsageError(f"Unknown scheme '{name}'; the params file has: {known}.{nearest(name, self.schemes)}")
        return self.schemes[name]


def _mapping(section: Any, what: str) -> dict[str, Any]:
    """A section's keys; an empty one has none."""
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise UsageError(f"{what} must hold keys, it holds {_shown(section)}.")
    return dict(section)


def read_params(path: Path | None) -> Params:
    """Read a params file (YAML 1.2); without a path, an empty one.

    Raises:
        InputError: the file is missing or is not YAML.
        UsageError: unknown keys or sections of the wrong shape.
    """
    if path is None:
        return Params({})
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"Params file {path} cannot be read: {reason}.") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"Params file {path} is not valid YAML: {error}.") from None
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise UsageError(f"Params file {path} must hold sections such as 'model:', it holds {_shown(content)}.")
    return Params(content, path)


def parse_yaml(text: str) -> Any:
    """Plain values from YAML 1.2.

    Raises:
        ValueError: not YAML, with the place and the problem on one line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{place}{' '.join(str(error.problem).split())}") from None
    except YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except LookupError as error:  # ruamel of a value that its tag does not allow, such as `!!bool maybe`
        raise ValueError(f"a value does not fit its tag: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
