"""How a configuration comes together, and what is refused on the way."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genie_cli.commands.options import given as used_flags
from genie_cli.commands.options import model_config
from genie_cli.config import (
    COMMON_KEYS,
    SECTIONS,
    EvaluateConfig,
    InputSpec,
    ModelConfig,
    Params,
    QuantizeConfig,
    SynthesizeConfig,
    build,
    parse_yaml,
    read_params,
    stage_config,
)
from genie_cli.errors import GenieError, InputError, UsageError
from genie_cli.quantization.presets import find_preset
from genie_cli.synthesis import presets as synthesis

SECTION_NAMES = (*SECTIONS, "common")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def quantize_config(params: Params, scheme: str | None = None, **flags: Any) -> QuantizeConfig:
    """As the command puts it together."""
    section = {**params.section("quantize"), **(params.scheme(scheme) if scheme is not None else {})}
    return stage_config(QuantizeConfig, section, used_flags(flags), find_preset, "quantize")


# --- precedence


LAYERS: dict[str, dict[str, Any]] = {
    "default": {},
    "common": {"common": {"seed": 2, "device": "cpu"}},
    "section": {"quantize": {"seed": 3, "device": "cuda"}},
    "scheme": {"quantize": {"schemes": {"mine": {"seed": 4, "device": "cuda:1"}}}},
}


def merged(*names: str) -> Params:
    content: dict[str, dict[str, Any]] = {}
    for name in names:
        for section, keys in LAYERS[name].items():
            content.setdefault(section, {}).update(keys)
    return Params(content)


@pytest.mark.parametrize(
    ("layers", "flag", "seed", "device"),
    [
        (("default",), None, 0, "auto"),
        (("common",), None, 2, "cpu"),
        (("common", "section"), None, 3, "cuda"),
        (("section",), None, 3, "cuda"),
        (("common", "section", "scheme"), None, 4, "cuda:1"),
        (("common", "scheme"), None, 4, "cuda:1"),
        (("common", "section", "scheme"), 5, 5, "cuda:1"),
        (("common",), 5, 5, "cpu"),
        (("default",), 5, 5, "auto"),
    ],
)
def test_precedence(layers: tuple[str, ...], flag: int | None, seed: int, device: str) -> None:
    config = quantize_config(merged(*layers), "mine" if "scheme" in layers else None, seed=flag)
    assert (config.seed, config.device) == (seed, device)


def test_preset_is_above_the_defaults_and_below_the_file() -> None:
    assert QuantizeConfig().reconstruct is True
    preset = quantize_config(Params({}), preset="minmax")
    assert (preset.reconstruct, preset.weight_range, preset.activation_range) == (False, "minmax", "minmax")
    params = Params({"quantize": {"weight_range": "search"}, "common": {"seed": 7}})
    config = quantize_config(params, preset="minmax", activation_range="search")
    assert (config.reconstruct, config.weight_range, config.activation_range) == (False, "search", "search")
    assert config.seed == 7


@pytest.mark.parametrize(
    ("params", "scheme", "flag", "preset"),
    [
        ({}, None, None, "genie-m"),
        ({"preset": "minmax"}, None, None, "minmax"),
        ({"preset": "minmax", "schemes": {"s": {"preset": "genie-m"}}}, "s", None, "genie-m"),
        ({"schemes": {"s": {"preset": "genie-m"}}}, "s", "minmax", "minmax"),
    ],
)
def test_preset_comes_from_any_layer(params: dict[str, Any], scheme: str | None, flag: str | None, preset: str) -> None:
    config = quantize_config(Params({"quantize": params}), scheme, preset=flag)
    assert config.preset == preset
    assert config.reconstruct is (preset != "minmax")


def test_schemes_do_not_leak_into_each_other_or_the_section() -> None:
    params = Params({"quantize": {"weight_bits": 3, "schemes": {"a": {"weight_bits": 2}, "b": {"activation_bits": 8}}}})
    assert quantize_config(params).weight_bits == 3
    assert quantize_config(params, "a").weight_bits == 2
    assert quantize_config(params, "b").weight_bits == 3
    assert quantize_config(params, "b").activation_bits == 8


def test_scheme_without_keys_is_the_section() -> None:
    params = Params({"quantize": {"weight_bits": 3, "schemes": {"plain": None}}})
    assert quantize_config(params, "plain") == quantize_config(params)


def test_common_keys_go_where_they_are_known() -> None:
    params = Params({"common": {"seed": 3, "device": "cpu", "precision": "bf16"}})
    assert params.section("evaluate") == {"device": "cpu", "precision": "bf16"}
    assert params.section("synthesize") == {"seed": 3, "device": "cpu", "precision": "bf16"}
    assert params.section("model") == {}


def test_empty_sections_are_empty() -> None:
    assert Params({"model": None, "quantize": {"schemes": None}}).section("quantize") == {}


def test_model_section_is_under_the_flags() -> None:
    params = Params({"model": {"name": "resnet18", "input_size": 64, "mean": [0.1, 0.2, 0.3]}})
    config = model_config(params, {"input_size": 96, "std": "1,1,1"})
    assert config == ModelConfig(name="resnet18", input_size=96, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))


def test_model_must_be_named() -> None:
    with pytest.raises(UsageError, match="No network is named"):
        model_config(Params({"model": {"input_size": 64}}), {})


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QuantizeConfig().seed = 3  # type: ignore[misc]


# --- --set


def test_set_gives_yaml_values_to_keys() -> None:
    settings = ["swing=false", "latent-lr=1e-3", "image_dtype=uint8", "log=", "out=a=b.safetensors"]
    assert used_flags({"seed": None, "num_steps": 3}, settings) == {
        "num_steps": 3,
        "swing": False,
        "latent_lr": 0.001,
        "image_dtype": "uint8",
        "log": None,
        "out": "a=b.safetensors",
    }


@pytest.mark.parametrize("setting", ["latent_lr", "=1", "", "latent_lr=[", "latent_lr=a: b: c", "x=" + "[" * 1200])
def test_set_that_cannot_be_read(setting: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        used_flags({}, [setting])


# --- unknown keys, at each level


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"modle": {}}, ("section 'modle'", "Did you mean 'model'?")),
        ({"syntesize": {}}, ("section 'syntesize'", "Did you mean 'synthesize'?")),
        ({"report": {}}, ("section 'report'", "model, synthesize, quantize, sensitivity, evaluate, export, common")),
        ({3: {}}, ("section '3'",)),
        ({"common": {"sed": 1}}, ("'sed'", "'common'", "Did you mean 'seed'?")),
        ({"common": {"num_steps": 1}}, ("'num_steps'", "'common'")),
        ({"model": {"nmae": "resnet18"}}, ("'nmae'", "'model'", "Did you mean 'name'?")),
        ({"synthesize": {"latent_dims": 1}}, ("'latent_dims'", "'synthesize'", "Did you mean 'latent_dim'?")),
        ({"quantize": {"wight_bits": 4}}, ("'wight_bits'", "'quantize'", "Did you mean 'weight_bits'?")),
        (
            {"quantize": {"schemes": {"a": {"bits": 4}}}},
            ("'bits'", "'quantize.schemes.a'", "Did you mean 'widths'?"),
        ),
        ({"evaluate": {"seed": 4}}, ("'seed'", "'evaluate'")),
        ({"evaluate": {("a", "b"): 4}}, ("('a', 'b')", "'evaluate'")),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(content: dict[Any, Any], fragments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        Params(content)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_unknown_flag_key_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'drop_probe'.*Did you mean 'drop_prob'\?"):
        quantize_config(Params({}), drop_probe=0.1)


def test_unknown_scheme_is_named_with_the_nearest() -> None:
    params = Params({"quantize": {"schemes": {"w4a4": {}, "w2a4": {}}}})
    with pytest.raises(UsageError, match=r"'w4a'; the params file has: w4a4, w2a4\. Did you mean 'w4a4'\?"):
        params.scheme("w4a")


# --- sections and values of the wrong kind


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"model": "resnet18"}, ("'model'", "it holds 'resnet18'")),
        ({"common": [1]}, ("'common'", "it holds [1]")),
        ({"quantize": {"schemes": ["w4a4"]}}, ("'quantize.schemes'", "['w4a4']")),
        ({"quantize": {"schemes": {"w4a4": 4}}}, ("'w4a4'", "it holds 4")),
        ({"model": "x" * 500}, ("'xxx", "...")),
    ],
)
def test_sections_must_hold_keys(content: dict[str, Any], fragments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        Params(content, Path("p.yaml"))
    assert len(str(caught.value)) < 200
    for fragment in ("must hold keys", "p.yaml", *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "key", "value", "bound"),
    [
        (QuantizeConfig, "weight_bits", 1, "at least 2"),
        (QuantizeConfig, "weight_bits", 9, "at most 8"),
        (QuantizeConfig, "activation_bits", 1, "at least 2"),
        (QuantizeConfig, "activation_bits", 17, "at most 16"),
        (QuantizeConfig, "activation_bits", "all", "should be a valid integer"),
        (QuantizeConfig, "weight_grid", "signed", "'asymmetric' or 'symmetric'"),
        (QuantizeConfig, "num_steps", 0, "at least 1"),
        (QuantizeConfig, "num_images", 1, "at least 2"),
        (QuantizeConfig, "batch_size", 0, "at least 1"),
        (QuantizeConfig, "drop_prob", 1.5, "at most 1"),
        (QuantizeConfig, "drop_prob", -0.5, "at least 0"),
        (QuantizeConfig, "warmup", 1.0, "less than 1"),
        (QuantizeConfig, "beta_end", 0, "greater than 0"),
        (QuantizeConfig, "weight_step_lr", -1e-4, "at least 0"),
        (QuantizeConfig, "seed", -1, "at least 0"),
        (QuantizeConfig, "seed", 2**63, "less than 9223372036854775808"),
        (SynthesizeConfig, "num_images", 1, "at least 2"),
        (SynthesizeConfig, "num_steps", 0, "at least 1"),
        (SynthesizeConfig, "batch_size", 1, "at least 2"),
        (SynthesizeConfig, "latent_lr", 0, "greater than 0"),
        (SynthesizeConfig, "latent_lr_factor", 1, "less than 1"),
        (EvaluateConfig, "num_images", 0, "at least 1"),
        (EvaluateConfig, "batch_size", 0, "at least 1"),
        (EvaluateConfig, "num_workers", -1, "at least 0"),
        (EvaluateConfig, "resize_size", 0, "sides are 1 to 65536 pixels long"),
        (ModelConfig, "input_size", 0, "sides are 1 to 65536 pixels long"),
        (ModelConfig, "num_channels", 0, "at least 1"),
    ],
)
def test_out_of_range(cls: Any, key: str, value: float, bound: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(cls, {key: value}, where="section")
    assert f"{key} = {value!r} cannot be used" in str(caught.value)
    assert bound in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "key", "value", "expected"),
    [
        (QuantizeConfig, "weight_bits", "four", "valid integer"),
        (QuantizeConfig, "weight_bits", 4.5, "valid integer"),
        (QuantizeConfig, "weight_bits", None, "valid integer"),
        (QuantizeConfig, "weight_bits", [4], "valid integer"),
        (QuantizeConfig, "reconstruct", "maybe", "valid boolean"),
        (QuantizeConfig, "weight_range", "percentile", "'search' or 'minmax'"),
        (QuantizeConfig, "precision", "fp16", "'auto', 'fp32' or 'bf16'"),
        (QuantizeConfig, "drop_prob", "half", "valid number"),
        (QuantizeConfig, "out", 5, "valid path"),
        (SynthesizeConfig, "image_dtype", "float32", "'float16' or 'uint8'"),
        (SynthesizeConfig, "latent_lr", float("nan"), "finite"),
        (SynthesizeConfig, "latent_lr", float("inf"), "finite"),
        (SynthesizeConfig, "latent_lr", 10**400, "number"),
        (EvaluateConfig, "data", 5, "valid string"),
        (ModelConfig, "name", ["resnet18"], "valid string"),
        (ModelConfig, "name", {"a": "b" * 500}, "valid string"),
    ],
)
def test_wrong_types(cls: Any, key: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(cls, {key: value}, where="section")
    message = str(caught.value)
    assert message.startswith(f"{key} = ")
    assert expected in message
    assert "\n" not in message
    assert "<class" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SynthesizeConfig, {"generator": False, "latents": "sampled"}, "latents = 'sampled' need a generator"),
        (SynthesizeConfig, {"generator": False, "conditioning": "label"}, "conditioning = 'label' needs a generator"),
        (SynthesizeConfig, {"margin_low": 0.9}, "margin_low = 0.9 is above margin_high = 0.8"),
        (SynthesizeConfig, {"discrepancy_weight": 1}, "needs a quantized student: give --student DIR"),
        (SynthesizeConfig, {"student": "q"}, "student = q is not used without a discrepancy_weight above 0"),
        (QuantizeConfig, {"loss": "kl"}, "loss = 'kl' compares classes: it needs unit = 'network', not 'block'"),
        (QuantizeConfig, {"rounding": "nearest", "activation_step_lr": 0}, "leaves nothing to learn"),
    ],
)
def test_options_that_do_not_fit_together(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(cls, options, where="section")
    assert message in str(caught.value)
    assert str(caught.value).startswith("section: ")


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SynthesizeConfig, {"generator": False}),
        (SynthesizeConfig, {"latents": "sampled", "conditioning": "label"}),
        (SynthesizeConfig, {"margin_low": 0.8}),
        (SynthesizeConfig, {"student": "q", "discrepancy_weight": 1}),
        (QuantizeConfig, {"loss": "kl", "unit": "network"}),
        (QuantizeConfig, {"rounding": "nearest"}),
        (QuantizeConfig, {"rounding": "nearest", "activation_step_lr": 0, "reconstruct": False}),
    ],
)
def test_options_that_fit_together(cls: Any, options: dict[str, Any]) -> None:
    assert isinstance(build(cls, options), cls)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("mixmix", "needs several networks: give --model more than once"),
        ("zaq", "needs a quantized student for its discrepancy_weight: give --student DIR"),
    ],
)
@pytest.mark.parametrize("section", [{}, {"other_teachers": [], "student": None}])
def test_presets_tell_what_they_need(preset: str, message: str, section: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        stage_config(SynthesizeConfig, section, {"preset": preset}, synthesis.find_preset, "synthesize")
    assert str(caught.value) == f"synthesize: preset = '{preset}' {message}."


@pytest.mark.parametrize(
    ("preset", "needed"), [("mixmix", {"other_teachers": [{"name": "resnet18"}]}), ("zaq", {"student": "q"})]
)
def test_needs_of_a_preset_come_from_any_layer(preset: str, needed: dict[str, Any]) -> None:
    for section, flags in ((needed, {}), ({}, needed)):
        config = stage_config(SynthesizeConfig, section, {**flags, "preset": preset}, synthesis.find_preset)
        assert config.preset == preset


@pytest.mark.parametrize("bits", [8, [8], [8, 8, 8], [1, 8], [8, 17], ["8", 8], [True, 8], {"weight": 8}, None])
def test_bits_of_a_layer_that_cannot_be_used_name_the_layer(bits: Any) -> None:
    with pytest.raises(
        UsageError, match=r"^bits_override = .* cannot be used: 'layer1\.\*' needs two numbers, bits of the weight"
    ):
        build(QuantizeConfig, {"bits_override": {"fc": [8, 8], "layer1.*": bits}})


def test_bits_of_layers() -> None:
    config = build(QuantizeConfig, {"bits_override": {"fc": [8, 4], "layer1.*": (2, 8)}})
    assert config.bits_override == {"fc": (8, 4), "layer1.*": (2, 8)}
    with pytest.raises(UsageError, match=r"bits_override = \[8, 8\] cannot be used"):
        build(QuantizeConfig, {"bits_override": [8, 8]})


@pytest.mark.parametrize(
    ("options", "learns"),
    [({}, True), ({"latents": "learned"}, True), ({"latents": "sampled"}, False), ({"generator": False}, False)],
)
def test_whether_latents_learn(options: dict[str, Any], learns: bool) -> None:
    assert build(SynthesizeConfig, options).learns_latents == learns


@pytest.mark.parametrize("value", ["0.5,half", "nan", "0.5,,0.5", "", [0.5, "x"], [float("inf")], {"a": 1}, 10**400])
def test_means_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(UsageError, match="mean = "):
        build(ModelConfig, {"mean": value}, where="model")


@pytest.mark.parametrize(
    ("value", "mean"),
    [("0.5", (0.5,)), ("0.1, 0.2,.3", (0.1, 0.2, 0.3)), (0.5, (0.5,)), (1, (1.0,)), ([0.1, 0.2], (0.1, 0.2))],
)
def test_means(value: Any, mean: tuple[float, ...]) -> None:
    assert build(ModelConfig, {"mean": value}).mean == mean


def test_input_needs_a_mean_and_a_positive_std_for_each_channel() -> None:
    with pytest.raises(UsageError, match="mean has 3 values for 1 channels"):
        build(InputSpec, {"num_channels": 1}, where="input")
    with pytest.raises(UsageError, match="std must be positive"):
        build(InputSpec, {"std": (0.1, 0.0, 0.1)}, where="input")


@pytest.mark.parametrize(
    ("options", "rounding", "activation"),
    [
        ({"num_steps": 20000}, 1e-3, 4e-5),
        ({"num_steps": 80000}, 1e-3, 4e-5),
        ({"num_steps": 5000}, 4e-3, 8e-5),
        ({"num_steps": 50}, 0.1, 8e-4),
        ({"num_steps": 1000, "rounding": "adaquant"}, 0.01, 4e-5 * 20**0.5),
        ({"num_steps": 50, "rounding_lr": 0.0, "activation_step_lr": 0.0}, 0.0, 0.0),
    ],
)
def test_rates_that_suit_the_number_of_steps(options: dict[str, Any], rounding: float, activation: float) -> None:
    config = build(QuantizeConfig, options)
    assert config.own_rounding_lr == pytest.approx(rounding)
    assert config.own_activation_step_lr == pytest.approx(activation)


# --- the file


def test_file(tmp_path: Path) -> None:
    text = """
    # a comment
    model:
      name: digits_resnet
      mean: [0.5]
    common: {seed: 3}
    quantize:
      weight_step_lr: 1e-4
      activation_step_lr: 4e-05
      schemes:
        w2a4: {weight_bits: 2}
    evaluate:
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = read_params(written(tmp_path, text))
    config = quantize_config(params, "w2a4")
    assert (config.weight_step_lr, config.activation_step_lr, config.weight_bits, config.seed) == (1e-4, 4e-5, 2, 3)
    assert params.section("evaluate") == {}
    assert model_config(params, {}).mean == (0.5,)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.5E+3", 1500.0), (".5", 0.5), ("1e3", 1000.0), ("012", 12), ("0o17", 15), ("0x1F", 31),
     ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("true", True), ("~", None), ("", None)],
)  # fmt: skip
def test_yaml_is_version_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "{}"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    params = read_params(written(tmp_path, text))
    assert params.section("synthesize") == {}
    assert params.schemes == {}


def test_no_file() -> None:
    assert read_params(None).section("quantize") == {}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml cannot be read: No such file"):
        read_params(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_params(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {name: [", "line 1, column 16"),
        ("model:\n\tname: x", "line 2, column 1"),
        ("model: {name: a}\nmodel: {name: b}", "duplicate key"),
        ("model: !!python/object:os.system {}", "constructor"),
        ("--- 1\n--- 2\n", "another document"),
        ("? {a: 1}\n: 2", "unhashable"),
        ("a: *b", "undefined alias"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!int", "does not fit its tag"),
        ("a: 2001-13-45", "month"),
        ("[" * 1200, "nested too deeply"),
        ("synthesize: {num_images: " + "9" * 5000 + "}", "digits"),
        ("\x00", "not allowed"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_params(path)
    message = str(caught.value)
    assert message.startswith(f"Params file {path} is not valid YAML: ")
    assert problem in message
    assert "\n" not in message
    assert "yaml.dev" not in message


def test_file_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is not UTF-8 text"):
        read_params(written(tmp_path, b"\xff\xfe\x00"))


@pytest.mark.parametrize("text", ["5", "- model", "model"])
def test_file_without_sections(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="must hold sections such as 'model:'"):
        read_params(written(tmp_path, text))


# --- anything else

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 300),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64]),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["auto", "fp32", "minmax", "genie", "uint8", "none", "0.5,0.5", "cuda:0", "\ud800"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
all_keys = sorted({key for cls in SECTIONS.values() for key in cls.model_fields} | set(COMMON_KEYS) | {"schemes"})
keys = st.one_of(st.sampled_from(all_keys), st.sampled_from(all_keys), scalars)
sections = st.one_of(values, st.dictionaries(keys, values, max_size=4))


def known_keys(name: str) -> list[str]:
    return list(COMMON_KEYS) if name == "common" else list(SECTIONS[name].model_fields)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(SECTION_NAMES) | scalars, sections, max_size=4))
def test_random_files_raise_nothing_else(content: dict[Any, Any]) -> None:
    try:
        params = Params(content, Path("p.yaml"))
        for name in SECTIONS:
            params.section(name)
        for name in params.schemes:
            params.scheme(name)
    except GenieError as error:
        assert str(error)


@settings(deadline=None)
@given(st.data(), st.sampled_from(sorted(SECTIONS)))
def test_random_values_raise_nothing_else(data: st.DataObject, name: str) -> None:
    """Known keys with any values: a configuration, or a message that names a key."""
    layer = data.draw(st.dictionaries(st.sampled_from(known_keys(name)), values, min_size=1, max_size=3))
    try:
        config = build(SECTIONS[name], layer, where=name)
    except GenieError as error:
        assert any(str(error).startswith(f"{key} = ") for key in layer)
    else:
        assert set(layer) <= config.model_fields_set


@settings(deadline=None)
@given(st.text(max_size=40))
def test_random_text_raises_nothing_else(text: str) -> None:
    try:
        parse_yaml(text)
    except ValueError as error:
        assert "\n" not in str(error)
