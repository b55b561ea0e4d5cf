"""Bundle a registered model as the demo's champion, from which `make demo` trains on.

    python -m demo.corpus build/champion-data --more-voices 156
    python -m flows factory --params params/champion.yaml --data build/champion-data --side-by-side 2
    python -m demo.recipes.champion valle2/1

The first two commands train a champion on from the one before it; the last copies the model's folder, with the lineage
records of all that made it, to `demo/champion/`, and writes its card. A model that `make demo` or another run has
trained on from it is bundled the same way.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from valle2.registry import resolve
from valle2.trust.lineage import ModelRecord, records_in

CHAMPION = Path("demo/champion")


def bundle_champion(model: str, folder: Path = CHAMPION) -> None:
    """Copy a model out of the registry.

    Args:
        model: As for `valle2 lineage`, such as `valle2/1`.
        folder: Where; what is there is replaced, whole or not at all.
    """
    resolved = resolve(model)
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(resolved.bundle, building)
    record = records_in(building)[resolved.lineage or ""]
    if not isinstance(record, ModelRecord):
        raise TypeError(f"{resolved.lineage} is the record of a stage, expected a model's")
    (building / "README.md").write_text(card(record))
    shutil.rmtree(folder, ignore_errors=True)
    for path in building.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    building.rename(folder)


def card(record: ModelRecord) -> str:
    """The champion's card, from its record."""
    metrics: dict[str, Any] = record.metrics
    figures = [
        f"| {name} | {value} |"
        for name, value in sorted(metrics.items())
        if isinstance(value, (int, float)) and not name.endswith(("_low", "_high"))
    ]
    parent = record.parent_model
    trained = f"trained on from model record `{parent[:12]}…`" if parent else "trained from scratch"
    verdict = "passed" if record.gate.get("passed") else "missed"
    return "\n".join(
        [
            "# The bundled champion",
            "",
            f"A small VALL-E 2, {trained} by this pipeline on the demo's synthetic",
            "corpus or a larger one of its kind. It speaks the demo's grammar of about 150 words in synthetic",
            "voices and is of no use beyond the demo. `make demo` starts from it, as a scheduled retraining starts",
            "from the champion before it.",
            "",
            f"Made by run `{record.run}` on {record.created[:10]}; lineage record `{record.digest}`,",
            "kept with all records that it names in `lineage/`. Licence: Apache-2.0; data: CC0-1.0.",
            "",
            f"Scores on unseen voices and sentences, as that run measured them (the gate: {verdict}):",
            "",
            "| figure | value |",
            "|---|---|",
            *figures,
            "",
        ]
    )


def main() -> None:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="registered model, such as valle2/1")
    bundle_champion(parser.parse_args().model)


if __name__ == "__main__":
    main()
