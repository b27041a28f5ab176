"""Networks and opsets that cannot be written as ONNX, and messages of the packages that write it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.deployment.onnx_translation import highest_opset
from genie_cli.errors import InputError, UsageError
from tests.support.onnx_files import Small, check_answers, written

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def classes(self: Any, x: Tensor) -> Tensor:
    return self.fc(x.mean((2, 3)))


def test_an_operation_is_named_with_the_reason_and_without_a_fix_that_does_not_help() -> None:
    with pytest.raises(InputError) as found:
        written(Small(lambda self, x: classes(self, torch.hypot(x, x))))
    message = str(found.value)
    assert message.startswith("The operation aten.hypot.default cannot be written as ONNX of opset 18 (")
    assert "prims.hypot" in message
    assert "--format pt2" in message
    assert "--opset" not in message
    assert "\x1b" not in message


def test_an_operation_that_is_not_found_still_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        try:
            raise AssertionError("\x1b[96mone of two kinds\x1b[0m.\nThis is more of it.")
        except AssertionError as error:
            raise torch.onnx.errors.OnnxExporterError("\x1b[96mThis is step 2/3\x1b[0m of it. Next steps:") from error

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(InputError, match=r"opset 18 \(one of two kinds\): use --format pt2\.$"):
        written(Small(classes))


def test_an_error_of_any_package_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise ValueError

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(InputError, match=r"\(ValueError\): give a lower --opset, or use --format pt2\.$"):
        written(Small(classes), opset=20)


def test_the_highest_opset_is_written_and_the_next_one_refused() -> None:
    highest = highest_opset()
    (domain,) = onnx.load_from_string(written(Small(classes), opset=highest)).opset_import
    assert domain.version == highest
    for opset in (highest + 1, onnx.defs.onnx_opset_version() + 1):
        with pytest.raises(UsageError, match=f"--opset {opset} cannot.* write {highest} at most"):
            written(Small(classes), opset=opset)


def test_the_packages_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def behind(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, places = F.max_pool2d(x + self.anchors, 2, return_indices=True)
        return classes(self, F.max_unpool2d(pooled, places, 2)), self.anchors

    network = Small(behind, anchors=torch.rand(8, 8, 8))
    levels = [logging.getLogger(name).level for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    content = written(network)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert levels == [logging.getLogger(name).level for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    check_answers(content, network)
