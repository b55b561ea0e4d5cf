"""What a Prefect server needs to know of Valle2: work pool, deployments, automations. Doing it again changes nothing.

The deployments themselves are in prefect.yaml, the automations in `infra.automations`.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from infra.automations import make_automations
from infra.services import POOL
from valle2.errors import FlowError


def bootstrap(root: Path) -> None:
    """Register pool, deployments and automations with the server that `PREFECT_API_URL` names.

    Args:
        root: The repository that the deployments run in.

    Raises:
        FlowError: The server refuses a deployment.
    """
    asyncio.run(_make_pool())
    _deploy(root)
    asyncio.run(make_automations())


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
