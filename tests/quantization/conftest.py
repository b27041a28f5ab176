"""The shipped teacher, captured once for all tests of this folder."""

import pytest

from genie_cli.config import ModelConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher


@pytest.fixture(scope="session")
def digits_teacher() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))
