"""Protocols: which weights and tensors are exempted from the target bits; the main reason why figures disagree."""

from __future__ import annotations

from dataclasses import dataclass

from genie_cli.errors import look_up


@dataclass(frozen=True)
class Protocol:
    """Which weights and tensors are exempted from the target bits.

    Attributes:
        name: the name users give.
        summary: one line for the user.
        edge_weights_8bit: first and last layer's weights have 8 bits.
        second_input_8bit: the second layer's input has 8 bits.
        last_input_8bit: the last layer's input has 8 bits.
        outputs: the outputs of additions and of the last layer are quantized too, at the target bits.
        every_tensor: every tensor that an integer kernel reads or writes is quantized, and 8-bit weights have a
            symmetric grid: an integer runtime needs both.
    """

    name: str
    summary: str
    edge_weights_8bit: bool
    second_input_8bit: bool
    last_input_8bit: bool
    outputs: bool = False
    every_tensor: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("genie", "first and last layer W8, second and last input A8 (BRECQ's)", True, True, True),
        Protocol("qdrop", "first and last layer W8, last input A8 (Table 5)", True, False, True),
        Protocol("ait", "every layer at the target bits (Table 4)", False, False, False),
        Protocol(
            "hardware",
            "every layer at the target bits, and the outputs of additions and of the last layer (ours, after DGH)",
            False,
            False,
            False,
            outputs=True,
        ),
        Protocol(
            "integer",
            "as genie, and every tensor that an integer kernel reads or writes A8; 8-bit weights symmetric (ours)",
            True,
            True,
            True,
            every_tensor=True,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UsageError: unknown name.
    """
    return look_up(PROTOCOLS, "protocol", name)
