"""`python -m infra up|down|mlflow|worker`: the services of one machine, for `make`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import typer

from flows.git import repository
from flows.settings import set_local
from infra import services
from valle2.errors import FlowError, Valle2Error
from valle2.tracking import home
from valle2.types import Seconds

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

PREFECT_PORT = ("PREFECT_PORT", 4200)
MLFLOW_PORT = ("MLFLOW_PORT", 5000)
WORKER_PAUSE: Seconds = 3.0


@app.command()
def up() -> None:
    """Start Prefect's server, MLflow's pages and one worker on loopback, those that do not run; tell where."""
    running = {service.name: service for service in services.running()}
    if len(running) == len(services.NAMES):
        _tell(list(running.values()))
        return
    root = repository(Path.cwd())
    prefect, mlflow = _address(running, "prefect", *PREFECT_PORT), _address(running, "mlflow", *MLFLOW_PORT)
    environment = {"PREFECT_API_URL": f"{prefect}/api", "VALLE2_HOME": str(home()), "PYTHONPATH": str(root)}
    os.environ.update(environment)
    commands = {
        "prefect": (services.prefect_command(_port(prefect)), prefect),
        "mlflow": (services.mlflow_command(_port(mlflow)), mlflow),
        "worker": ([sys.executable, "-m", "infra", "worker"], ""),
    }

    def start(name: str) -> services.Service:
        command, address = commands[name]
        # Runs tell their errors themselves, as one sentence; the server has nobody to tell but its log.
        heard = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"} if name == "prefect" else {}
        return running.get(name) or services.start(name, command, environment | heard, address)

    try:
        server, pages = start("prefect"), start("mlflow")
        services.wait_for(server, f"{prefect}/api/health")
        from infra.bootstrap import bootstrap

        bootstrap(root)
        start("worker")
        services.wait_for(pages, f"{mlflow}/health")
    except FlowError:
        if not running:
            services.stop_all()
        raise
    _tell(services.running())


def _address(running: dict[str, services.Service], name: str, variable: str, default: int) -> str:
    """Where a service is, or will be."""
    return running[name].address if name in running else f"http://{services.HOST}:{services.port(variable, default)}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


@app.command()
def down() -> None:
    """Stop what `up` started, and nothing else."""
    for service in services.stop_all():
        print(f"stopped {service.name}")


@app.command()
def mlflow() -> None:
    """Show MLflow's pages until Ctrl-C."""
    mlflow_port = services.port(*MLFLOW_PORT)
    print(f"MLflow   http://{services.HOST}:{mlflow_port}   (Ctrl-C ends it)", flush=True)
    subprocess.run(services.mlflow_command(mlflow_port), check=False)


@app.command()
def worker() -> None:
    """Keep a worker at work; `up` starts this.

    Prefect's worker ends where a run is resumed in the seconds before its suspended process has ended.
    """
    while subprocess.run(services.worker_command(), check=False).returncode:
        time.sleep(WORKER_PAUSE)


def _tell(running: list[services.Service]) -> None:
    for service in running:
        print(f"{service.name:<9}{service.address or 'takes deployments of pool ' + services.POOL}")
    print("run a deployment: on Prefect's pages; stop these: make down")


def main() -> None:
    """Entry point: user errors become one sentence and exit code 2."""
    set_local()
    try:
        app()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
