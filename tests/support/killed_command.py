"""A genie command that is killed with signal 9 right after its first checkpoint.

python killed_command.py synthesize ...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from genie_cli.app import app
from genie_cli.work.folder import WorkFolder

save = WorkFolder.save_checkpoint


def save_and_die(*args: Any) -> None:
    """Keep a checkpoint, and die."""
    save(*args)
    os.kill(os.getpid(), signal.SIGKILL)


def run_killed(*arguments: str) -> None:
    """Run the command in a process of its own, which dies on the way."""
    command = [sys.executable, "-P", __file__, *arguments]  # -P: the folder of this file hides no module
    killed = subprocess.run(command, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed


if __name__ == "__main__":
    WorkFolder.save_checkpoint = save_and_die
    app(sys.argv[1:], prog_name="genie")
