"""What a Prefect server needs to know of Valle2: work pool, deployments, automation. Doing it again changes nothing.

The deployments themselves are in prefect.yaml. The automation makes a successful `ingest` start `retrain` at the branch
that holds the new data.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

from flows.ingest import EVENT
from infra.services import POOL
from valle2.errors import FlowError

AUTOMATION = "retrain on new data"
RETRAIN = "retrain/retrain"


def bootstrap(root: Path) -> None:
    """Register pool, deployments and automation with the server that `PREFECT_API_URL` names.

    Args:
        root: The repository that the deployments run in.

    Raises:
        FlowError: The server refuses a deployment.
    """
    asyncio.run(_make_pool())
    _deploy(root)
    asyncio.run(_make_automation())


async def _make_pool() -> None:
    async with get_client() as client:
        try:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description="flow runs of Valle2"))
        except ObjectAlreadyExists:
            return


def _deploy(root: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = {**os.environ, "VALLE2_ROOT": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise FlowError(f"Prefect refused the deployments of prefect.yaml: {said[-1] if said else 'no reason given'}")


async def _make_automation() -> None:
    async with get_client() as client:
        retrain = (await client.read_deployment_by_name(RETRAIN)).id
        revision = {"__prefect_kind": "jinja", "template": "{{ event.payload.revision }}"}
        action = RunDeployment(
            source="selected", deployment_id=retrain, parameters={"revision": revision}, job_variables=None
        )
        automation = AutomationCore(
            name=AUTOMATION,
            description="new shards start a retraining at the branch that holds them",
            trigger=EventTrigger(expect={EVENT}, posture=Posture.Reactive, threshold=1),
            actions=[action],
        )
        known = await client.read_automations_by_name(AUTOMATION)
        if known:
            await client.update_automation(known[0].id, automation)
        else:
            await client.create_automation(automation)
