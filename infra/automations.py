"""What the Prefect server does by itself: start a retraining on new data, close what nobody answers, tell people.

People are told by a webhook: its address is taken from `VALLE2_WEBHOOK_URL` when `make up` starts the server, and kept
in the server's database, encrypted, and in no file of the repository. The body is JSON with a sentence in `text`, which
is what Slack, Mattermost and their like show, and its parts beside it.
"""

import os
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.approval import EXPIRED
from flows.ingest import EVENT
from flows.notices import EVENTS
from flows.queue import RETRAIN
from valle2.errors import FlowError

VARIABLE = "VALLE2_WEBHOOK_URL"
BLOCK = "valle2"
LAPSED = "The flow was *"
"""How Prefect's message on a suspended run begins that nobody answered in time: `paused and never resumed`."""
NOT_PROMOTED = (
    "nobody answered in time: not promoted; the version stays as it is, and Retry, or `valle2 promote VERSION "
    "--approver NAME`, decides later"
)
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.valle2"}
TOLD = "{{ event.payload | tojson }}"
WENT_WRONG = """\
{%- set decision = flow_run.state.name ~ ": " ~ flow_run.state.message -%}
{%- set todo = "Look at its page, mend what it says and run the same again; the champion is untouched." -%}
{%- set model = (flow_run.tags | join(" ")).partition("approval:")[2].split(" ")[0] -%}
{%- set text = flow.name ~ " " ~ flow_run.name ~ ", " ~ (model ~ ", " if model) ~ decision ~ ". " ~ todo -%}
{"text": {{ text | tojson }},
 "model": {{ model.partition("/")[0] | tojson }}, "version": {{ model.partition("/")[2] | tojson }},
 "decision": {{ decision | tojson }}, "run": {{ flow_run.name | tojson }}, "todo": {{ todo | tojson }}}"""


async def make_automations() -> None:
    """Bring the server's automations up to date; those that tell people are there only where a webhook is set."""
    async with get_client() as client:
        await _put(client, await _retrain_on_new_data(client))
        await _put(client, _close_unanswered())
        url = os.environ.get(VARIABLE, "").strip()
        block = await _webhook(url) if url else None
        for name, trigger, payload in _notices():
            if block is None:
                for known in await client.read_automations_by_name(name):
                    await client.delete_automation(known.id)
                continue
            action = CallWebhook(block_document_id=block, payload=payload)
            description = f"tells people, by the webhook that {VARIABLE} named"
            await _put(client, AutomationCore(name=name, description=description, trigger=trigger, actions=[action]))


async def _retrain_on_new_data(client: PrefectClient) -> AutomationCore:
    retrain = (await client.read_deployment_by_name(RETRAIN)).id
    why = "new data version {{ event.payload.data }} by ingest run {{ event.payload.run }}"
    parameters = {
        "revision": {"__prefect_kind": "jinja", "template": "{{ event.payload.revision }}"},
        "why": {"__prefect_kind": "jinja", "template": why},
    }
    return AutomationCore(
        name="retrain on new data",
        description="new shards start a retraining at the branch that holds them",
        trigger=EventTrigger(expect={EVENT}, posture=Posture.Reactive, threshold=1),
        actions=[RunDeployment(source="selected", deployment_id=retrain, parameters=parameters, job_variables=None)],
    )


def _close_unanswered() -> AutomationCore:
    trigger = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": LAPSED},
        match_related=OURS, expect={"prefect.flow-run.Failed"}, posture=Posture.Reactive, threshold=1,
    )  # fmt: skip
    return AutomationCore(
        name="not promoted where nobody answers",
        description="a run whose approval nobody gave has not failed: its model is just not promoted",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CANCELLED, name=EXPIRED, message=NOT_PROMOTED)],
    )


def _notices() -> list[tuple[str, EventTrigger, str]]:
    """Name, trigger and body of what people are told."""
    decided = EventTrigger(expect=set(EVENTS), posture=Posture.Reactive, threshold=1)
    wrong = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-message": f"!{LAPSED}"},
        match_related=OURS,
        expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", EXPIRED)},
        posture=Posture.Reactive, threshold=1,
    )  # fmt: skip
    return [("tell of decisions", decided, TOLD), ("tell of runs that went wrong", wrong, WENT_WRONG)]


async def _webhook(url: str) -> UUID:
    """Keep the address with the server.

    Raises:
        FlowError: It is none.
    """
    if not url.startswith(("http://", "https://")):
        raise FlowError(f"{VARIABLE} is no address: expected http://... or https://..., found {url[:8]!r}...")
    return await Webhook(url=url, headers={"Content-Type": "application/json"}).save(BLOCK, overwrite=True)


async def _put(client: PrefectClient, automation: AutomationCore) -> None:
    known = await client.read_automations_by_name(automation.name)
    if known:
        await client.update_automation(known[0].id, automation)
    else:
        await client.create_automation(automation)
