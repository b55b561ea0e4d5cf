"""Settings of Prefect for runs on this machine. They are read when `prefect` is imported: set them before."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from valle2.errors import FlowError
from valle2.tracking import home
from valle2.types import Seconds

LOCAL = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "INFO",
    # The runner prints the stages' lines itself, and errors are one sentence at the end.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's pages would bring along seven processes for jobs of language models.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
}

SERVER_PATIENCE: Seconds = 10.0


def set_local(server: str | None = None) -> None:
    """Keep Prefect's own files under `.valle2/prefect`; what the user has set stays.

    Args:
        server: API address of a server to use; without one, a temporary server is started for the run.
    """
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    if "PREFECT_HOME" not in os.environ:
        prefect_home().mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(prefect_home())
    if server:
        os.environ.setdefault("PREFECT_API_URL", server)


def check_server() -> None:
    """See that the server that `PREFECT_API_URL` names is there.

    Raises:
        FlowError: It does not answer.
    """
    if not (server := os.environ.get("PREFECT_API_URL")):
        return
    try:
        with urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=SERVER_PATIENCE):
            return
    except (OSError, ValueError) as error:  # URLError is an OSError; HTTPError: it is there, and is asked for more
        if isinstance(error, urllib.error.HTTPError):
            return
        raise FlowError(
            f"the Prefect server {server} does not answer ({error}); start it with `make up`, or unset PREFECT_API_URL "
            "to run without one"
        ) from error


def prefect_home() -> Path:
    """Prefect's database and settings for this repository; the user's own `~/.prefect` is untouched."""
    return home() / "prefect"
