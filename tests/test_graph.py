"""dvc.yaml against the code: a stage lists every module that can change its bytes."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from dvc.repo import Repo

from tests.tiny import ROOT

ENTRY = {
    "ingest": "valle2.corpus.ingest",
    "transcribe": "valle2.corpus.transcribe",
    "curate": "valle2.corpus.curate",
    "tokenize": "valle2.corpus.tokenize",
    "data-report": "valle2.corpus.data_report",
    "train-ar": "valle2.training.loop",
    "train-nar": "valle2.training.loop",
    "evaluate": "valle2.evaluation.evaluate",
}
HARMLESS = {
    "valle2.errors",
    "valle2.progress",
    "valle2.outbox",
    "valle2.system_metrics",
    "valle2.tracking",
    "valle2.training.memory",
    "valle2.training.samples",
    "valle2.training_run",
    "valle2.types",
    "valle2.registry",
    "valle2.storage",
    "valle2.workers",
    "valle2.config.workers",
    "valle2.config.launch",
}
"""Words, bars, run logs, samples to hear, type names, copies of objects, who works and where: no byte of an output
comes from them."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    graph = grimp.build_graph("valle2", cache_dir=None)
    for module in HARMLESS:
        graph.remove_module(module)
    return graph


@pytest.mark.parametrize("stage", ENTRY)
def test_a_stage_depends_on_all_the_code_that_it_imports(stage: str, imports: grimp.ImportGraph) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    modules = {ENTRY[stage], *imports.find_upstream_modules(ENTRY[stage])}
    files = [file for module in modules if (file := ROOT / f"{module.replace('.', '/')}.py").exists()]
    paths = [file.relative_to(ROOT).as_posix() for file in files]
    missing = [path for path in paths if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)]
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", ENTRY)
def test_the_deps_are_sorted_and_there(stage: str) -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = [dep for dep in deps if dep.startswith("valle2/")]
    assert deps == sorted(deps)
    assert not [dep for dep in code if not (ROOT / dep).exists()]


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({"group_size": 4}, {"train-ar"}),
        ({"ar": {"size": "small", "num_layers": 3}}, {"train-ar"}),
        ({"nar": {"size": "small", "num_layers": 3}}, {"train-nar"}),
    ],
)
def test_one_nar_serves_all_group_sizes(changed: dict[str, Any], stale: set[str], tmp_path: Path) -> None:
    """By DVC itself: with all else the same, which of the two trainings does a change of the model repeat?"""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    toy = {
        name: {
            "cmd": f"mkdir -p {stages[name]['outs'][0]}",
            "params": stages[name]["params"],
            "outs": stages[name]["outs"],
        }
        for name in ("train-ar", "train-nar", "evaluate")
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": toy}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with chdir(tmp_path), Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.reproduce()
        assert not repo.status()
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | {"model": params["model"] | changed}))
        repo._reset()
        assert set(repo.status()) == stale
