"""The whole: raw recordings to a registered, traceable model.

    python -m flows factory                                          the demo
    python -m flows factory --params params/full.yaml --data DIR     your own

`make demo` and `make run` call it. The halves on their own are `flows.ingest`, `flows.retrain` and `flows.promote`.
"""

import os
import sys

from prefect import flow
from prefect.states import State

from flows.ending import ended
from flows.ingest import run_data_half
from flows.promote import decide
from flows.retrain import retraining, run_model_half
from flows.session import session


@flow(persist_result=False)
def factory(
    revision: str = "HEAD", params: str | None = None, data: str | None = None, side_by_side: int = 1, why: str = ""
) -> State[str]:
    """Ingest, retrain and promote in one run.

    Args:
        revision: Branch, tag or commit to run at.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.
        side_by_side: Commands at a time; 2 trains AR and NAR together where there are cores for both.
        why: What asks for this run, in words; found out where it is left empty.

    Returns:
        The branch that holds the result.
    """
    with session(revision, params, data, why) as (space, runs):
        run_data_half(space, runs)
        with retraining(space, runs):
            run_model_half(space, runs, side_by_side)
            decide(space, runs)
        return ended(space, runs)


if __name__ == "__main__":  # Prefect reads its settings when imported: start over where they can still be set
    os.execv(sys.executable, [sys.executable, "-m", "flows", "factory", *sys.argv[1:]])
