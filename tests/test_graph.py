"""dvc.yaml against the code: a stage lists every module that can change its bytes."""

import grimp
import pytest
import yaml

from tests.tiny import ROOT

ENTRY = {
    "ingest": "valle2.corpus.ingest",
    "transcribe": "valle2.corpus.transcribe",
    "curate": "valle2.corpus.curate",
    "tokenize": "valle2.corpus.tokenize",
    "train-ar": "valle2.training.loop",
    "train-nar": "valle2.training.loop",
    "evaluate": "valle2.evaluation.evaluate",
}
HARMLESS = {
    "valle2.errors",
    "valle2.progress",
    "valle2.tracking",
    "valle2.types",
    "valle2.registry",
    "valle2.workers",
    "valle2.config.workers",
}
"""Words, bars, run logs, type names and who does the work: no byte of an output comes from them."""


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
