"""A retraining by hand on a server: it is queued there behind those that run, and says who wanted it."""

from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.cause import by_hand
from valle2.errors import FlowError

RETRAIN = "retrain/retrain"


def enqueue(revision: str, params: str | None, data: str | None, side_by_side: int) -> str:
    """Start the deployment of `retrain`; the arguments are the flow's.

    Returns:
        The flow run's name.

    Raises:
        FlowError: There is no server, or it has no such deployment.
    """
    if not get_current_settings().api.url:
        raise FlowError("no Prefect server runs here; `make up` starts one, PREFECT_API_URL names one elsewhere")
    parameters = {
        "revision": revision, "side_by_side": side_by_side, "why": by_hand(),
        "params": str(Path(params).absolute()) if params else None,
        "data": str(Path(data).absolute()) if data else None,
    }  # fmt: skip
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(RETRAIN)
        except ObjectNotFound as error:
            raise FlowError(f"the server has no deployment {RETRAIN}; `make up` registers it") from error
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).name
