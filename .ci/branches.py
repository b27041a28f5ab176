"""Share of branches that the measured tests took, in each place; below the floor it fails.

After a measured run: ``python .ci/branches.py 95 'genie_cli/runtime/*' 'genie_cli/config/*'``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage


def main() -> None:
    """Print the share of each place; exit with 1 where one is below the floor."""
    floor, *places = sys.argv[1:]
    measured = Coverage()
    measured.load()
    low = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        for place in places:
            measured.json_report(include=[place], outfile=str(file))
            totals = json.loads(file.read_text())["totals"]
            share = 100 * totals["covered_branches"] / totals["num_branches"]
            sys.stdout.write(
                f"{place}: {share:.1f} % of branches ({totals['covered_branches']} of {totals['num_branches']})\n"
            )
            if share < float(floor):
                low.append(place)
    if low:
        sys.exit(f"Below {floor} % of branches: {', '.join(low)}. `coverage report -m` shows what is missing.")


if __name__ == "__main__":
    main()
