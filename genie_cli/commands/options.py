"""Every option of the commands, and how flags, params file and presets become a configuration.

The parameters of a command are called as the keys of its configuration; `default` only tells the
reader what the configuration holds (a test compares them).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from genie_cli.errors import UsageError

if TYPE_CHECKING:  # pydantic and torch are imported when a command runs, so that --help stays fast
    from genie_cli.config import Frozen, ModelConfig, Params
    from genie_cli.config.presets import Preset

    ConfigT = TypeVar("ConfigT", bound=Frozen)

_MODEL, _IMAGES, _DATA, _RECIPE, _RUN, _OUTPUT = "Model", "Images", "Data", "Recipe", "Run", "Output"


def _option(panel: str, names: str, help: str, default: str | None = None, **more: Any) -> Any:
    """An option whose value is None where it is not given, so that the params file can speak."""
    shown = help if default is None else f"{help} \\[default: {default}]"
    return typer.Option(*names.split(), help=shown, rich_help_panel=panel, show_default=False, **more)


def _settings(example: str) -> Any:
    help = f"Any other key of the command's params section, e.g. --set {example}; may be repeated."
    return _option(_RECIPE, "--set", help, metavar="KEY=VALUE")


_OWN = "the model's own"

ModelName = Annotated[
    str | None, _option(_MODEL, "--model", "A name of `genie models`, or FILE.py:FACTORY, code that is run.")
]
Weights = Annotated[
    str | None,
    _option(_MODEL, "--weights", "A torchvision weights name, or a local .safetensors or .pth file.", _OWN),
]
ModelNames = Annotated[
    list[str] | None,
    _option(
        _MODEL,
        "--model",
        "A name of `genie models`, or FILE.py:FACTORY, code that is run; more than one: images that fit them all.",
    ),
]
WeightsOfEach = Annotated[
    list[str] | None,
    _option(
        _MODEL, "--weights", "A torchvision weights name, or a local .safetensors or .pth file; one a --model.", _OWN
    ),
]
InputSize = Annotated[int | None, _option(_MODEL, "--input-size", "Side of the square input in pixels.", _OWN)]
NumChannels = Annotated[int | None, _option(_MODEL, "--num-channels", "Channels of the input.", _OWN)]
Mean = Annotated[str | None, _option(_MODEL, "--mean", "Normalisation: mean of each channel, e.g. 0.5,0.5,0.5.", _OWN)]
Std = Annotated[str | None, _option(_MODEL, "--std", "Normalisation: deviation of each channel.", _OWN)]
Quantized = Annotated[
    Path | None, _option(_MODEL, "--quantized", "Folder written by `genie quantize`.", "evaluate the teacher")
]
Folded = Annotated[bool | None, _option(_MODEL, "--folded", "Evaluate the teacher with its batch norms folded.")]

Images = Annotated[
    str | None,
    _option(
        _IMAGES,
        "--images",
        "Image set to calibrate on, or real images: digits, cifar10:FOLDER, imagefolder:PATH, or a .safetensors.",
        "images.safetensors",
    ),
]
FirstImages = Annotated[
    int | None, _option(_IMAGES, "--num-images", "Use so many: the first of a set, a draw of real ones.", "all")
]

Data = Annotated[
    str | None,
    _option(_DATA, "--data", "digits, cifar10:FOLDER, imagefolder:PATH, or a .safetensors with images and labels."),
]
ResizeSize = Annotated[
    str | None,
    _option(
        _DATA,
        "--resize-size",
        "Image files: shorter side before the centre crop in pixels, or none.",
        "the model's own, else input size / 0.875",
    ),
]
EvaluatedImages = Annotated[int | None, _option(_DATA, "--num-images", "Evaluate the first so many images.", "all")]
EvaluateBatchSize = Annotated[
    int | None, _option(_DATA, "--batch-size", "Images at once; the result does not depend on it.", "128")
]
NumWorkers = Annotated[
    int | None, _option(_DATA, "--num-workers", "Processes that decode image files; 0 decodes in this one.", "0")
]

NumImages = Annotated[int | None, _option(_RECIPE, "--n --num-images", "Images to synthesize.", "1024")]
BatchSteps = Annotated[int | None, _option(_RECIPE, "--num-steps", "Optimisation steps of each batch.", "4000")]
SynthesizeBatchSize = Annotated[int | None, _option(_RECIPE, "--batch-size", "Images optimised together.", "128")]
SynthesizePreset = Annotated[
    str | None,
    _option(
        _RECIPE,
        "--preset",
        "Named recipe: genie, zeroq, swing, gba, latent, genie-fast, mixmix, gdfq, qimera, kw, intraq, zaq.",
        "genie",
    ),
]
UseGenerator = Annotated[
    bool | None, _option(_RECIPE, "--generator/--no-generator", "Learn a generator, or the pixels themselves.", "on")
]
Latents = Annotated[
    str | None, _option(_RECIPE, "--latents", "The generator's input: learned, or sampled in every step.", "learned")
]
Swing = Annotated[
    bool | None, _option(_RECIPE, "--swing/--no-swing", "Shift the input of strided convolutions at random.", "on")
]
Student = Annotated[
    Path | None,
    _option(_MODEL, "--student", "Quantized folder of the same network, which the images are to tell from it.", "none"),
]
SynthesizeSettings = Annotated[list[str] | None, _settings("latent_lr=0.05")]

WeightBits = Annotated[int | None, _option(_RECIPE, "--weight-bits", "Bits of the weights, 2 to 8.", "4")]
ActivationBits = Annotated[int | None, _option(_RECIPE, "--activation-bits", "Bits of the activations, 2 to 8.", "4")]
Scheme = Annotated[
    str | None, _option(_RECIPE, "--scheme", "Use this subsection of `quantize.schemes` in the params file.")
]
Protocol = Annotated[
    str | None, _option(_RECIPE, "--protocol", "Who gets which bits: genie, qdrop, ait, hardware.", "genie")
]
BitsOverride = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--bits-override",
        "Bits of weight and input of the layers that match, such as 'layer1.*=8,8'; may be repeated.",
        metavar="PATTERN=W,A",
    ),
]
QuantizePreset = Annotated[
    str | None,
    _option(
        _RECIPE,
        "--preset",
        "Named recipe: genie-m, minmax, mse, dfq, adaround, adaquant, brecq, qdrop, lsq, ait.",
        "genie-m",
    ),
]
UnitSteps = Annotated[
    int | None, _option(_RECIPE, "--num-steps", "Optimisation steps of each reconstruction unit.", "20000")
]
QuantizeBatchSize = Annotated[int | None, _option(_RECIPE, "--batch-size", "Images in each step.", "32")]
Holdout = Annotated[
    float | None,
    _option(_RECIPE, "--holdout", "Share of the images never trained on; with --patience 0.125.", "0.0"),
]
Patience = Annotated[
    int | None,
    _option(
        _RECIPE, "--patience", "End a unit when its held-out loss has not improved for so many steps.", "all steps"
    ),
]
UnitOption = Annotated[str | None, _option(_RECIPE, "--unit", "Learned together: layer, block or network.", "block")]
Rounding = Annotated[
    str | None, _option(_RECIPE, "--rounding", "How weights learn: nearest, adaround, genie or adaquant.", "genie")
]
DropProb = Annotated[
    float | None, _option(_RECIPE, "--drop-prob", "QDrop: chance that an activation keeps full precision.", "0.5")
]
RoundWeight = Annotated[float | None, _option(_RECIPE, "--round-weight", "Weight of the rounding regularizer.", "1.0")]
QuantizeSettings = Annotated[list[str] | None, _settings("beta_end=4")]

Seed = Annotated[int | None, _option(_RUN, "--seed", "Seed of every random number.", "0")]
Device = Annotated[str | None, _option(_RUN, "--device", "auto, cpu, cuda or cuda:INDEX.", "auto")]
Precision = Annotated[
    str | None, _option(_RUN, "--precision", "fp32, bf16, or auto: bf16 where the hardware has it.", "auto")
]
EvaluatePrecision = Annotated[
    str | None, _option(_RUN, "--precision", "fp32, bf16, or auto: bf16 where the hardware has it.", "fp32")
]
MemoryLimit = Annotated[
    str | None,
    _option(
        _RUN,
        "--memory-limit",
        "Most memory for calibration activations and the step's working set, e.g. 2GiB.",
        "from the free memory",
        metavar="SIZE",
    ),
]
Deterministic = Annotated[
    bool | None,
    _option(_RUN, "--deterministic/--no-deterministic", "CUDA: kernels that give the same bytes in every run.", "on"),
]
CheckpointInterval = Annotated[
    float | None, _option(_RUN, "--checkpoint-interval", "Seconds between checkpoints inside a batch or unit.", "180.0")
]
Fresh = Annotated[
    bool | None, _option(_RUN, "--fresh/--no-fresh", "Start anew instead of going on where a killed run was.", "off")
]
ParamsFile = Annotated[
    Path | None,
    _option(_RUN, "--params", "YAML file with sections named model, common and as the commands; flags win."),
]

ImagesOut = Annotated[Path | None, _option(_OUTPUT, "--out", "Image set to write.", "images.safetensors")]
Log = Annotated[Path | None, _option(_OUTPUT, "--log", "Loss curve to write, as CSV.")]
Performance = Annotated[Path | None, _option(_OUTPUT, "--performance", "Seconds and peak memory to write, as JSON.")]
QuantizedOut = Annotated[Path | None, _option(_OUTPUT, "--out", "Folder to write.", "quantized")]
MetricsOut = Annotated[Path | None, _option(_OUTPUT, "--out", "Metrics file to write, as JSON.")]
AsJson = Annotated[bool, _option(_OUTPUT, "--json", "Print JSON instead of tables.")]


def read(path: Path | None) -> Params:
    """The params file, or an empty one."""
    from genie_cli.config import read_params

    return read_params(path)


def given(flags: Mapping[str, Any], settings: list[str] | None = None) -> dict[str, Any]:
    """The flags that were used, and the `--set` ones, under their configuration keys.

    Raises:
        UsageError: a `--set` without a key and a value, or with a value that is not YAML.
    """
    values = {key: value for key, value in flags.items() if value is not None}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"--set {setting!r} must be KEY=VALUE.")
        values[key.replace("-", "_")] = _parse(text, setting)
    return values


def _parse(text: str, setting: str) -> Any:
    from genie_cli.config import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {setting!r}: the value is not valid YAML: {error}.") from None


def model_config(
    params: Params,
    name: str | None,
    weights: str | None,
    input_size: int | None,
    num_channels: int | None,
    mean: str | None,
    std: str | None,
) -> ModelConfig:
    """The `model` section under the flags.

    Raises:
        UsageError: no network is named, or a value cannot be used.
    """
    from genie_cli.config import ModelConfig, build

    flags = {
        "name": name, "weights": weights, "input_size": input_size, "num_channels": num_channels,
        "mean": mean, "std": std,
    }  # fmt: skip
    values = {**params.section("model"), **given(flags)}
    if "name" not in values:
        raise UsageError("No network is named: give --model SPEC, or a `model` section in --params.")
    return build(ModelConfig, values, where="model")


def one_each(names: list[str], weights: list[str]) -> list[tuple[str, str | None]]:
    """Networks with their weights, where `--model` is given more than once.

    Raises:
        UsageError: some have weights and some do not.
    """
    if weights and len(weights) != len(names):
        raise UsageError(
            f"{len(names)} --model and {len(weights)} --weights: give one --weights for each network, in their "
            "order, 'default' for a network's own, or none at all."
        )
    files = [None if file == "default" else file for file in weights] or [None] * len(names)
    return list(zip(names, files, strict=True))


def stage_config(
    cls: type[ConfigT],
    section: Mapping[str, Any],
    flags: Mapping[str, Any],
    find_preset: Callable[[str], Preset] | None = None,
    where: str = "",
) -> ConfigT:
    """Defaults < preset < file < flags.

    Raises:
        UsageError: unknown keys or preset, a value out of range, or a preset without what it needs.
    """
    from genie_cli.config import build

    if find_preset is None:
        return build(cls, section, flags, where=where)
    name = str(flags.get("preset", section.get("preset", cls.model_fields["preset"].default)))
    preset = find_preset(name)
    preset.check_needs(name, {**preset.options, **section, **flags}, where)
    return build(cls, preset.options, section, flags, where=where)


def check_files(
    outputs: Mapping[str, Path | None],
    inputs: Mapping[str, Path | str | None],
    folders: Collection[str] = (),
) -> None:
    """Refuse, before the work, outputs that cannot be written, or that would replace one another or what is read.

    Args:
        outputs: option -> what will be written, the stage's own output first.
        inputs: option -> what is read.
        folders: options that name the folder of a quantized network, which holds its own files alone.

    Raises:
        InputError: an output cannot be written.
        UsageError: an output is another one or an input, or lies in one of `folders`.
    """
    from genie_cli.artifacts.atomic import check_writable

    written = {option: path for option, path in outputs.items() if path is not None}
    for option, path in written.items():
        check_writable(path, folder=option in folders)
    read = {option: path for option, path in inputs.items() if path is not None}
    for option, path in written.items():
        place = os.path.realpath(path)
        for other, taken in {**written, **read}.items():
            if other == option or "\0" in str(taken):
                continue
            if place == os.path.realpath(taken):
                raise UsageError(f"{option} and {other} are the same file {path}: choose another {option}.")
            if other in folders and Path(place).parent == Path(os.path.realpath(taken)):
                raise UsageError(
                    f"{option} {path} is in the folder of {other}, which holds a quantized network and nothing else: "
                    f"choose another {option}."
                )
