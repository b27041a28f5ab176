"""The configuration of ``genie quantize``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from genie_cli.config.base import LongStage
from genie_cli.config.bit_table import MAX_ACTIVATION_BITS as MAX_ACTIVATION_BITS
from genie_cli.config.bit_table import MAX_BITS as MAX_BITS
from genie_cli.config.bit_table import MIN_BITS as MIN_BITS
from genie_cli.config.bit_table import ActivationBits, BitTable, as_bit_table, gives_table
from genie_cli.config.marks import NOT_DETERMINING, Flag
from genie_cli.sizes import parse_count, parse_size

_ROUNDING_LR, _ACTIVATION_STEP_LR, _PAPER_STEPS = 1e-3, 4e-5, 20000
"""The paper's rates of the softbits and the activation step sizes, and the steps that they are for."""
_LARGEST_ROUNDING_LR = 0.1
"""The most that the softbits' rate grows to where there are fewer steps."""
_LARGEST_WEIGHT_LR = 0.01
"""The same for a weight behind nearest rounding, in its step sizes: more of it throws whole networks off."""

MemorySize = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
"""Bytes, also written as ``2GiB`` or ``500 MB``."""


def _read_target(value: Any) -> Any:
    """A size, or the word that stands for that of the uniform network."""
    return UNIFORM if isinstance(value, str) and value.strip().lower() == UNIFORM else parse_size(value)


UNIFORM = "uniform"
TargetSize = Annotated[Annotated[int, Field(ge=1)] | Literal["uniform"], BeforeValidator(_read_target)]
"""Bytes, also written as ``600kB``; or ``uniform``."""
Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
"""A number, also written as ``2.1G``."""


def _read_widths(value: Any) -> Any:
    """Widths as they were written: ``2,4,8``, or a list."""
    return tuple(value.split(",")) if isinstance(value, str) else (value,) if isinstance(value, int) else value


Widths = Annotated[
    tuple[Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)], ...], BeforeValidator(_read_widths), Field(min_length=1)
]
WeightGrid = Literal["asymmetric", "symmetric"]
"""The relation of a weight's codes to zero: a zero point per channel, or signed codes of which 0 is zero."""


class QuantizeConfig(LongStage):
    """``genie quantize`` (GENIE-M, paper section 3.2)."""

    images: Annotated[str, BeforeValidator(str), Flag("Images"), NOT_DETERMINING] = "images.safetensors"
    """Image set to calibrate on, or real images: a form of `evaluate --data`, such as images:FOLDER.

    FILE.py:FACTORY is code that is run."""
    num_images: Annotated[int | None, Flag("Images", default="all")] = Field(None, ge=2)
    """Number of images to use: the first of a set or factory, a draw of other real ones under the seed."""
    weight_bits: Annotated[int, Flag("Recipe")] = Field(4, ge=MIN_BITS, le=MAX_BITS)
    """Bits of the weights, 2 to 8."""
    activation_bits: Annotated[ActivationBits, Flag("Recipe", metavar="BITS")] = 4
    """Bits of the activations, 2 to 16, or none: weights alone are quantized."""
    weight_grid: Annotated[WeightGrid, Flag("Recipe")] = "asymmetric"
    """Codes of the weights: asymmetric, with a zero point per channel, or symmetric, signed and without.

    Integer kernels are faster on symmetric 8-bit weights, which protocol integer has in any case."""
    protocol: Annotated[str, Flag("Recipe")] = "genie"
    """Who gets which bits: genie, qdrop, ait, hardware, integer. `genie inspect MODEL --protocol NAME` prints it."""
    bits_override: Annotated[
        dict[str, tuple[int, ActivationBits]] | None, Flag("Recipe", metavar="PATTERN=W,A|FILE", repeated=True)
    ] = None
    """Bits of weight and input of the layers that match, such as 'layer1.*=8,8' (may be repeated), or a bits.yaml.

    They rank above the protocol. A params file holds shell-style patterns over layer names, quoted where they begin
    with a star: `{layer1.*: [8, 8]}`. An input of none bits stays in float. Later patterns win. A file's path, or a
    table with weights and activations, is taken for `bits_table`."""
    bits_table: Annotated[BitTable | None, BeforeValidator(as_bit_table), NOT_DETERMINING] = None
    """Bits of weights by layer and of activations by site, or a file of them; they rank above all others.

    Artifacts have the bits of each layer and site in their metadata, and do not repeat the table."""
    target_size: Annotated[TargetSize | None, Flag("Recipe", metavar="SIZE")] = None
    """Most bytes of the folder on the disk, e.g. 600kB: the bits of each layer are searched.

    `uniform` is the size that the network has with `weight_bits` everywhere. Activations keep their bits, which take no
    bytes, and so do the layers that the protocol or an override exempts."""
    target_ratio: Annotated[float | None, Flag("Recipe", metavar="SHARE")] = Field(None, gt=0, le=1)
    """The same as a share of the network in float32, e.g. 0.12."""
    target_bitops: Annotated[Count | None, Flag("Recipe", metavar="COUNT")] = None
    """Most bit operations per image, e.g. 2.1G: the bits of layers and activations are searched."""
    widths: Annotated[Widths | None, Flag("Recipe", "--bits", default="all of 2 to 8", metavar="B,B...")] = None
    """Bits that the search chooses from, such as 2,4,8 for runtimes that know only these."""
    repair: Annotated[bool, Flag("Recipe")] = True
    """After a search and its learning, change bits by one where learning came out otherwise, and learn again.

    The budget is kept. Of the two networks the one whose outputs are nearer to the teacher's is written."""
    sensitivity: Annotated[Path | None, Flag("Recipe", default="the estimate"), NOT_DETERMINING] = None
    """Costs that the search goes by, a file of `genie sensitivity`."""
    preset: Annotated[str, Flag("Recipe")] = "genie-m"
    """Named recipe: genie-m, genie-tuned, minmax, mse, closed-form, dfq, adaround, adaquant, brecq, qdrop, lsq, ait."""
    num_steps: Annotated[int, Flag("Recipe")] = Field(20000, ge=1)
    """Optimisation steps of each reconstruction unit."""
    seed: Annotated[int, Flag("Run", before="device")] = Field(0, ge=0, lt=2**63)
    """Seed of every random number."""
    reconstruct: bool = True
    """Learn rounding and step sizes unit by unit; false: ranges only, nearest rounding."""
    closed_form: bool = False
    """Without steps: weights by least squares, rounded so that errors make up for one another (ERQ, GPTQ).

    The weights of a layer are corrected for the errors of its inputs, and its bias for what is left."""
    data_free: bool = False
    """Without images: equalised weights, ranges and bias correction from the batch-norm statistics (DFQ)."""
    equalize: bool = True
    """DFQ: cross-layer equalization. It helps networks of uneven channels; grids per channel do better on others."""
    unit: Annotated[Literal["layer", "block", "network"], Flag("Recipe")] = "block"
    """Learned together: layer, block (residual blocks, single layers outside) or network."""
    max_unit_layers: Annotated[int, Flag("Recipe")] = Field(12, ge=1)
    """Most weight layers of a unit: a larger one is cut where several tensors cross, except with unit network."""
    rounding: Annotated[str, Flag("Recipe")] = "genie"
    """The way that weights learn: nearest, adaround, genie, adaquant, or one of a plug-in.

    nearest: not at all. adaround: softbits on a fixed step size (AdaRound). genie: softbits and step size together
    (Eq. 10). adaquant: the weight itself behind nearest rounding, with its step size (AdaQuant, LSQ)."""
    plugins: Annotated[
        tuple[Path, ...] | None, Flag("Recipe", "--plugin", metavar="FILE.py", repeated=True), NOT_DETERMINING
    ] = None
    """File that registers roundings or presets (may be repeated): code that is run."""
    loss: Literal["squared", "kl"] = "squared"
    """Loss at a unit's output: the squared error, or the KL divergence of the class probabilities."""
    weight_range: Literal["search", "minmax"] = "search"
    """Initial weight step size: least |w - q(w)|^2.4 over 100 clipping ratios, or the full range."""
    activation_range: Literal["search", "minmax"] = "search"
    """Initial activation step size: by the same search, or the full range."""
    weight_step_lr: float = Field(1e-4, ge=0)
    """Learning rate of the weight step sizes, in the units of `weight_step_space`."""
    weight_step_space: Literal["checkpoint", "relative"] = "checkpoint"
    """The quantity that the rate moves: the step of the unfolded weight, as the paper does, or step / start."""
    activation_step_lr: float | None = Field(None, ge=0)
    """Learning rate of the activation step sizes; null: the rate that suits the number of steps.

    That is the paper's 4e-5 for its 20000 steps, and more for fewer with the square root of their share: in
    proportion costs accuracy at 4 bits."""
    rounding_lr: float | None = Field(None, ge=0)
    """Learning rate of the softbits' logits; null: the rate that suits the number of steps.

    Where `rounding` is adaquant, it is the rate of the weights, in step sizes. The default is the paper's 0.001 for
    its 20000 steps, and in proportion more for fewer, up to 0.1 (adaquant 0.01): the way is as long."""
    bias_lr: float = Field(0.0, ge=0)
    """Learning rate of the biases while a unit learns; 0: they stay.

    It is a share of the root mean square of a layer's biases, and falls to 0 with the steps. 0.01 is a good one."""
    drop_prob: Annotated[float, Flag("Recipe")] = Field(0.5, ge=0, le=1)
    """QDrop: probability that an activation keeps full precision during reconstruction."""
    finetune_share: Annotated[float, Flag("Recipe")] = Field(0.0, ge=0, le=1)
    """Fine-tuning: so many steps at the end, as a share of `num_steps`, for all step sizes and biases together.

    They learn from the network's outputs, the integers stay. Each step mixes its images in pairs (mixup). A step costs
    about what one step of every unit does, and the teacher's pass. What is worse on mixed images is left out."""
    round_weight: Annotated[float, Flag("Recipe")] = Field(1.0, ge=0)
    """Weight of the rounding regularizer."""
    warmup: float = Field(0.2, ge=0, lt=1)
    """Share of the steps before the rounding regularizer starts."""
    beta_start: float = Field(20.0, gt=0)
    """Exponent of the rounding regularizer when it starts."""
    beta_end: float = Field(2.0, gt=0)
    """Exponent of the rounding regularizer at the last step."""
    batch_size: Annotated[int, Flag("Recipe")] = Field(32, ge=1)
    """Images in each step."""
    augmentation: Annotated[Literal["none", "flips", "shifts", "cutmix"], Flag("Recipe")] = "none"
    """Changed copies of the images to learn on besides: none, flips, shifts or cutmix.

    flips: mirrored left to right. shifts: moved by up to an eighth of each side. cutmix: with a rectangle of another
    image. Steps stay as many, memory for activations doubles."""
    holdout: Annotated[float, Flag("Recipe")] = Field(0.0, ge=0, lt=1)
    """Share of the images never trained on; with --patience 0.125."""
    patience: Annotated[int | None, Flag("Recipe", default="all steps")] = Field(None, ge=2)
    """End a unit when its held-out loss has not improved for so many steps."""
    memory_limit: Annotated[
        MemorySize | None,
        Flag("Run", default="from the free memory", metavar="SIZE", before="checkpoint_interval"),
        NOT_DETERMINING,
    ] = None
    """Most memory for calibration activations and the step's working set, e.g. 2GiB."""
    out: Annotated[Path, Flag("Output"), NOT_DETERMINING] = Path("quantized")
    """Folder to write."""
    performance: Annotated[Path | None, Flag("Output"), NOT_DETERMINING] = None
    """Seconds and peak memory to write, as JSON."""
    log: Annotated[Path | None, Flag("Output"), NOT_DETERMINING] = None
    """Course of each unit's loss to write, as CSV.

    Its columns are unit, step, loss, and held_out_loss, which is empty where it was not measured."""
    tensorboard: Annotated[Path | None, Flag("Output", metavar="DIR"), NOT_DETERMINING] = None
    """Folder to write the losses into while the work goes on, for TensorBoard."""

    @property
    def finetune_steps(self) -> int:
        """Steps of fine-tuning; 0: there is none."""
        return math.ceil(self.finetune_share * self.num_steps)

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

    @property
    def has_target(self) -> bool:
        """True if bits are to be searched within a budget."""
        return not (self.target_size is None and self.target_ratio is None and self.target_bitops is None)

    @property
    def own_widths(self) -> tuple[int, ...]:
        """`widths` in their order, or all."""
        return tuple(sorted(set(self.widths or range(MIN_BITS, MAX_BITS + 1))))

    @model_validator(mode="before")
    @classmethod
    def _table_of_overrides(cls, values: Any) -> Any:
        """Take a file or a table that is given as `bits_override` for `bits_table`."""
        given = values.get("bits_override") if isinstance(values, Mapping) else None
        if gives_table(given):
            return {**values, "bits_override": None, "bits_table": given}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeConfig:
        if self.loss == "kl" and self.unit != "network":
            raise ValueError(f"loss = 'kl' compares classes: it needs unit = 'network', not '{self.unit}'")
        if self.closed_form and (self.reconstruct or self.data_free):
            other = "reconstruct" if self.reconstruct else "data_free"
            raise ValueError(f"closed_form finds weights without steps, from images: it needs {other} = false")
        if self.data_free and self.finetune_share:
            raise ValueError("finetune_share > 0 learns from images, and data_free uses none")
        if self.reconstruct and self.rounding == "nearest":
            if self.activation_step_lr == 0:
                raise ValueError("rounding = 'nearest' with activation_step_lr = 0 leaves nothing to learn")
            table = self.bits_table.activations if self.bits_table is not None else {}
            asked = [*(bits for _, bits in (self.bits_override or {}).values()), *table.values()]
            if self.activation_bits is None and all(bits is None for bits in asked):
                raise ValueError("rounding = 'nearest' with activation_bits = none leaves nothing to learn")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> QuantizeConfig:
        """Refuse budgets that contradict each other, and parts of a search without one."""
        if self.target_size is not None and self.target_ratio is not None:
            raise ValueError("target_size and target_ratio both say how large the network may be: give one")
        if not self.has_target:
            for name in ("widths", "sensitivity"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} = {_listed(getattr(self, name))} belongs to a search for bits: give target_size, "
                        "target_ratio or target_bitops too"
                    )
        elif self.bits_table is not None:
            raise ValueError("a table of bits leaves nothing to search: leave out the target, or the table")
        elif self.data_free:
            raise ValueError("a search for bits needs images, and this preset uses none: give another preset")
        return self

    @field_validator("bits_override", mode="before")
    @classmethod
    def _two_bits_each(cls, value: Any) -> Any:
        """Name the pattern whose bits cannot be used."""
        for pattern, bits in value.items() if isinstance(value, Mapping) else ():
            listed = bits if isinstance(bits, list | tuple) else ()
            if len(listed) != 2 or not _can_be(listed[0], MAX_BITS) or not _can_be_input(listed[1]):
                raise ValueError(
                    f"{pattern!r} needs two numbers, bits of the weight from {MIN_BITS} to {MAX_BITS} and of the input "
                    f"from {MIN_BITS} to {MAX_ACTIVATION_BITS} (or none): [8, 8]"
                )
        return value


def _listed(value: Any) -> str:
    """A value as it is typed: lists with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _can_be(bits: Any, most: int) -> bool:
    return type(bits) is int and MIN_BITS <= bits <= most


def _can_be_input(bits: Any) -> bool:
    return bits is None or bits == "none" or _can_be(bits, MAX_ACTIVATION_BITS)
