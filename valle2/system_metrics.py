"""Load of the machine while a run trains, under the names of MLflow's System Metrics page.

MLflow's own monitor ends at the first answer that it does not get, so only its collectors are used; the points go the
way of all others and wait where the store is away.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from valle2.types import Seconds

PREFIX = "system/"
EVERY: Seconds = 10.0
"""Between points, as with MLflow's monitor; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is another."""


class SystemMetrics:
    """A thread that logs processor, memory, disk, network and, where there is one, GPU.

    Args:
        log: Takes a step and its figures; steps count points.
        first_step: That comes next; a resumed run goes on counting.
    """

    def __init__(self, log: Callable[[int, Mapping[str, float]], None], first_step: int = 0) -> None:
        self._log, self._step = log, first_step
        self._every = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or EVERY)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            self._thread.start()

    def stop(self) -> None:
        """Log no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        collectors = _collectors()
        own = psutil.Process()
        while not self._stop.wait(self._every):
            figures = {f"{PREFIX}process_memory_usage_megabytes": round(own.memory_info().rss / 1e6, 1)}
            for collector in collectors:
                try:
                    collector.collect_metrics()
                    figures |= {PREFIX + name: float(value) for name, value in collector.aggregate_metrics().items()}
                except Exception:  # noqa: BLE001 - drivers have errors of their own; a figure less harms nobody
                    continue
                finally:
                    collector.clear_metrics()
            self._log(self._step, figures)
            self._step += 1


def _collectors() -> list[Any]:
    """MLflow's collectors that work on this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
        except Exception:  # noqa: BLE001 - without the driver, each says so in its own way
            continue
    return found
