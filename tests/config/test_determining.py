"""What artifacts and work folders record of a configuration, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

from genie_cli.config import LongStage, ModelConfig, QuantizeConfig, SynthesizeConfig

SYNTHESIZE = (
    '{"batch_size":128,"brightness_std":0.0,"class_weight":0.0,"conditioning":"none","contrast_std":0.0,"crop_lowest":0.5,"crop_prob":0.0,'
    '"deterministic":true,"discrepancy_weight":0.0,"generator":true,"generator_lr":0.01,"generator_lr_decay":0.95,'
    '"generator_lr_decay_every":100,"image_dtype":"float16","image_loss_weight":1.0,"latent_dim":256,"latent_lr":0.1,'
    '"latent_lr_factor":0.1,"latent_lr_patience":100,"latent_min_lr":0.0001,"latents":null,"margin_high":0.8,'
    '"margin_low":0.05,"margin_weight":0.0,"mix_prob":0.4,"num_images":1024,"num_mixed":2,"num_steps":4000,'
    '"pixel_lr":0.1,"precision":"auto","preset":"genie","seed":0,"smoothness_weight":0.0,"soft_class_lowest":0.95,'
    '"soft_class_weight":0.0,"statistics_weight":1.0,"swing":true,"tanh":true,"terms":null}'
)
QUANTIZE = (
    '{"activation_bits":4,"activation_range":"search","activation_step_lr":null,"augmentation":"none",'
    '"batch_size":32,"beta_end":2.0,'
    '"beta_start":20.0,"bias_lr":0.0,"bits_override":null,"closed_form":false,"data_free":false,"deterministic":true,"drop_prob":0.5,"equalize":true,'
    '"finetune_share":0.0,"holdout":0.0,"loss":"squared","max_unit_layers":12,"num_images":null,"num_steps":20000,"patience":null,'
    '"precision":"auto","preset":"genie-m","protocol":"genie","reconstruct":true,"repair":true,'
    '"round_weight":1.0,"rounding":"genie","rounding_lr":null,"seed":0,"target_bitops":null,"target_ratio":null,'
    '"target_size":null,"unit":"block","warmup":0.2,"weight_bits":4,"weight_grid":"asymmetric",'
    '"weight_range":"search","weight_step_lr":0.0001,"weight_step_space":"checkpoint","widths":null}'
)


def recorded(config: LongStage) -> str:
    """As metadata are encoded."""
    return json.dumps(config.determining(), sort_keys=True, separators=(",", ":"))


def test_defaults_to_the_byte() -> None:
    assert recorded(SynthesizeConfig()) == SYNTHESIZE
    assert recorded(QuantizeConfig()) == QUANTIZE


def test_paths_and_what_changes_no_tensor_are_not_recorded() -> None:
    run = {"device": "cuda:1", "checkpoint_interval": 5.0, "fresh": True, "performance": Path("p"), "out": Path("o")}
    others = (ModelConfig(name="resnet18"),)
    synthesis = SynthesizeConfig(**run, batches_at_once=2, log=Path("l"), other_teachers=others)
    assert recorded(synthesis) == SYNTHESIZE
    assert recorded(QuantizeConfig(**run, images="digits", memory_limit=1 << 30)) == QUANTIZE


def test_student_is_not_recorded_and_its_weight_is() -> None:
    config = SynthesizeConfig(student=Path("q"), discrepancy_weight=1.0)
    assert recorded(config) == SYNTHESIZE.replace('"discrepancy_weight":0.0', '"discrepancy_weight":1.0')


def test_precision_and_determinism_are_recorded() -> None:
    config = QuantizeConfig(precision="bf16", deterministic=False, bits_override={"fc": (8, 4)})
    assert config.determining()["precision"] == "bf16"
    assert config.determining()["deterministic"] is False
    assert config.determining()["bits_override"] == {"fc": [8, 4]}
