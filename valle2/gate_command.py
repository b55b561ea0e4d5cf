"""`valle2 gate`: would this model be let through? Says so, and writes the verdict for the promote flow."""

from pathlib import Path
from typing import Annotated

import typer

from valle2.config.params import PARAMS, load_config

VERDICT = Path("artifacts/gate/verdict.json")


def gate(
    out: Annotated[Path, typer.Option(help="where the verdict goes, as JSON")] = VERDICT,
    params: Annotated[Path, typer.Option(help="parameter file; its `gate` section has the rules")] = PARAMS,
) -> None:
    """Hold the evaluated model against the gate's rules and the champion; nothing is registered."""
    from valle2.evaluation.gate import judge
    from valle2.gate_facts import gather
    from valle2.stage import write_json

    config = load_config(params)
    verdict = judge(gather(config), config.gate)
    for rule in verdict.rules:
        print(f"gate: {'pass' if rule.passed else 'FAIL'} {rule.name}: {rule.sentence}")
    outcome = "passed" if verdict.passed else "refused"
    print(f"gate: {outcome}, {len(verdict.reasons)} of {len(verdict.rules)} rules failed")
    write_json(out, verdict.to_json())
