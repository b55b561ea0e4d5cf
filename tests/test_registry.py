"""Rejected models stay and never rule; the champion speaks through MLflow; training runs survive a crash."""

import base64
import io
import json

import pandas
import pytest
import soundfile

from tests.evaluations import make_evaluation
from tests.fabricated import config, voice, workspace
from tests.served import DATA
from valle2.audio import encode_wave
from valle2.config.promote import GateConfig
from valle2.config.sampling import SamplingConfig
from valle2.errors import LineageError, ModelError
from valle2.evaluation.gate import EvalReport, Facts, judge
from valle2.evaluation.report import write_report
from valle2.model_card import card_of
from valle2.model_folder import write_bundle
from valle2.promotion import challenge, promote, reject, rollback
from valle2.registry import bundle_sha256, current_champion, register, resolve, versions
from valle2.stage import digest, file_sha256, output
from valle2.tracking import connect, home, tracking_uri
from valle2.training_run import training_run
from valle2.trust.lineage import ModelRecord
from valle2.trust.signing import Keys

GOOD = {"wer": 0.1, "inf": 0.0, "cut": 0.0, "sim_wins": 0.95, "dnsmos": 3.2, "num_cases": 24, "wer_model": "Whisper"}
SEEN = Facts(leaked_speakers=(), without_consent=(), has_data_report=True)
PASSED = judge(EvalReport(GOOD, facts=SEEN), GateConfig())
FAILED = judge(EvalReport(GOOD | {"wer": 0.97}, facts=SEEN), GateConfig())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A tiny voice model; MLflow's database is set up once for all tests here."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VALLE2_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workspace(folder)
        write_bundle(
            folder / "model", ar_dir=output("train-ar"), nar_dir=output("train-nar"),
            bpe=output("curate") / "bpe.json", codec_name="codec", decoder="codec",
            sampling=SamplingConfig(max_seconds=0.4),
        )  # fmt: skip
        yield folder / "model"


def test_a_rejected_model_is_kept_with_reasons_and_never_champion(bundle):
    version = register(bundle, "a" * 64, GOOD | {"wer": 0.97}, FAILED, name="poor")
    [kept] = versions("poor")
    assert kept.tags["valle2.status"] == "rejected"
    assert kept.tags["valle2.gate.max_wer"] == "fail 0.97 <= 0.35"
    assert "word error rate" in kept.tags["valle2.reasons"]
    with pytest.raises(ModelError, match="cannot be champion: word error rate"):
        promote(version, "me", "please", name="poor")
    with pytest.raises(ModelError, match="no version with the alias 'champion'"):
        resolve("poor@champion")
    with pytest.raises(ModelError, match="no version with the alias 'candidate'"):
        resolve("poor@candidate")
    assert resolve(f"poor/{version}").lineage == "a" * 64


def test_mlflow_has_the_report_and_its_tables(bundle, tmp_path):
    from mlflow.artifacts import load_dict

    report = make_evaluation(tmp_path / "evaluate", 4)
    metrics, cases = (json.loads((report / f"{name}.json").read_text()) for name in ("metrics", "cases"))
    write_report(report / "report", metrics, cases, report / "samples", {})
    version = register(bundle, "e" * 64, metrics, PASSED, report=report, name="shown")
    run = connect().get_model_version("shown", str(version)).run_id
    names = {artifact.path for artifact in connect().list_artifacts(run)}
    assert {"report", "samples", "tables"} <= names
    cases = pandas.DataFrame(**load_dict(f"runs:/{run}/tables/cases.json"))
    assert list(cases["case"][:2]) == ["case-000", "case-001"] and len(cases) == 4
    assert cases["marks"][0] == "cut short (CUT)" and cases["wer"][1] > 0 and "heard" in cases
    figures = pandas.DataFrame(**load_dict(f"runs:/{run}/tables/figures.json"))
    [wer] = figures[(figures["figure"] == "WER") & (figures["speech"] == "VALL-E 2")].to_dict("records")
    assert wer["value"] == f"{100 * metrics['wer']:.1f} %" and wer["measured by"].startswith("bundled Whisper")
    assert "mlflow.loggedArtifacts" in connect().get_run(run).data.tags


def test_promotion_moves_the_aliases_and_is_recorded(bundle):
    first = register(bundle, "1" * 64, GOOD, PASSED, run_ids={"ar": "r1"}, name="voice")
    assert register(bundle, "1" * 64, GOOD, PASSED, name="voice") == first
    assert resolve("voice@candidate").version == first
    promotion = promote(first, "Ann", "better", name="voice")
    assert promote(first, "Ann", "again", name="voice") == promotion
    second = register(bundle, "2" * 64, GOOD, PASSED, name="voice")
    assert promote(second, "Bob", "newer", name="voice").replaced == first
    assert resolve("voice@champion").version == second
    assert resolve("voice@previous").version == first
    assert promote(first, "Bob", "back again", name="voice").replaced == second
    found = resolve("voice@champion")
    assert (found.version, found.lineage) == (first, "1" * 64)
    assert bundle_sha256(found.bundle) == bundle_sha256(bundle)
    third = register(bundle, "3" * 64, GOOD, PASSED, name="voice")
    reject(third, "Ann", "sounds tired", name="voice")
    with pytest.raises(ModelError, match="rejected by Ann: sounds tired"):
        promote(third, "Ann", "", name="voice")
    # Somebody sets the alias by hand.
    connect().set_registered_model_alias("voice", "champion", str(third))
    with pytest.raises(ModelError, match="set the alias by hand"):
        resolve("voice@champion")
    tags = connect().get_model_version("voice", str(first)).tags
    forged = tags["valle2.promotion"].replace(f'"version": {first}', f'"version": {third}').replace("1" * 64, "3" * 64)
    for tag, value in (("promotion", forged), ("signature", tags["valle2.signature"])):
        connect().set_model_version_tag("voice", str(third), f"valle2.{tag}", value)
    with pytest.raises(ModelError, match="the promotion record was altered"):
        resolve("voice@champion")
    promote(first, "Ann", "repair", name="voice")
    assert resolve("voice@champion").version == first


def statuses(name):
    return {int(item.version): item.tags["valle2.status"] for item in versions(name)}


def test_a_rollback_restores_the_champion_before_and_is_recorded(bundle):
    numbers = [register(bundle, digit * 64, GOOD, PASSED, name="back") for digit in "567"]
    with pytest.raises(ModelError, match="back has no champion"):
        rollback("Ann", "none yet", name="back")
    for number in numbers:
        promote(number, "Ann", "better", name="back")
    done = rollback("Bob", "it lisps", name="back")
    assert (done.version, done.withdrawn, done.replaced, done.action) == (2, 3, 1, "rollback")
    assert resolve("back@champion").version == 2 and resolve("back@previous").version == 1
    assert statuses("back") == {1: "previous", 2: "champion", 3: "withdrawn"}
    kept = sorted((home() / "promotions").glob("back-2-*.json"))
    assert json.loads(kept[-1].read_text())["promotion"]["reason"] == "it lisps"
    assert rollback("Bob", "this one, too", name="back").version == 1
    assert resolve("back@champion").version == 1 and statuses("back")[2] == "withdrawn"
    with pytest.raises(ModelError, match="back/1 is the first champion"):
        rollback("Bob", "and on", name="back")
    assert promote(3, "Ann", "mended", name="back").replaced == 1


def test_an_alias_that_is_moved_back_by_hand_is_refused(bundle):
    for digit in "89":
        promote(register(bundle, digit * 64, GOOD, PASSED, name="moved"), "Ann", "better", name="moved")
    connect().set_registered_model_alias("moved", "champion", "1")
    with pytest.raises(ModelError, match=r"last promotion is that of moved/2, by Ann at .*moved the alias by hand"):
        resolve("moved@champion")
    assert promote(2, "Ann", "put back", name="moved").replaced == 1
    assert resolve("moved@champion").version == 2


def test_a_record_of_the_registered_model_that_was_altered_is_refused(bundle):
    promote(register(bundle, "b" * 64, GOOD, PASSED, name="forged"), "Ann", "good", name="forged")
    text = connect().get_registered_model("forged").tags["valle2.promotion"]
    connect().set_registered_model_tag("forged", "valle2.promotion", text.replace("Ann", "Eve"))
    for action in (lambda: resolve("forged@champion"), lambda: rollback("Ann", "why", name="forged")):
        with pytest.raises(ModelError, match="the promotion record was altered"):
            action()


def test_a_candidate_challenges_the_champion_one_at_a_time(bundle):
    first, second = (register(bundle, digit * 64, GOOD, PASSED, name="duel") for digit in "de")
    challenge(first, "duel")
    challenge(second, "duel")
    assert statuses("duel") == {first: "candidate", second: "challenger"}
    assert resolve("duel@challenger").version == second
    promote(second, "Ann", "better", name="duel")
    with pytest.raises(ModelError, match="no version with the alias 'challenger'"):
        resolve("duel@challenger")
    with pytest.raises(ModelError, match="is champion; only a candidate can challenge"):
        challenge(second, "duel")


def test_the_record_says_what_was_promoted_and_which_report_was_seen(bundle, tmp_path):
    report = make_evaluation(tmp_path / "evaluate", 4)
    metrics, cases = (json.loads((report / f"{name}.json").read_text()) for name in ("metrics", "cases"))
    page = write_report(report / "report", metrics, cases, report / "samples", {})
    version = register(bundle, "f" * 64, GOOD, PASSED, report=report, name="seen")
    with pytest.raises(ModelError, match=r"the report that was seen has the digest 000000000000…, that of seen/1 is"):
        promote(version, "Ann", "read it", name="seen", seen_report="0" * 64)
    assert current_champion("seen") is None
    done = promote(version, "Ann", "read it", name="seen", seen_report=file_sha256(page))
    assert done.seen_report == file_sha256(page)
    assert done.gate["max_wer"] == "pass 0.1 <= 0.35"
    assert done.model_sha256 == digest(bundle_sha256(bundle))
    champion = current_champion("seen")
    assert champion.name == "seen/1"
    assert champion.evaluation() == (metrics, cases)


def test_the_model_card_is_made_of_the_facts(bundle, tmp_path):
    from mlflow.artifacts import load_text

    report = make_evaluation(tmp_path / "evaluate", 4)
    metrics = json.loads((report / "metrics.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(DATA))
    version = register(bundle, "ab" * 32, GOOD, PASSED, report=report, data=tmp_path / "report.json", name="carded")
    card = card_of("carded", version)
    low, high = (f"{100 * metrics[f'wer_{end}']:.1f}" for end in ("low", "high"))
    assert f"| this model | {100 * metrics['wer']:.1f} ({low} to {high}) |" in card
    assert "0.06 h of training speech of 2 speakers" in card and "| licence | CC0-1.0: 0.08 h |" in card
    assert "## Not for" in card and "## Risks" in card and "- max_wer: pass 0.1 <= 0.35" in card
    assert "AR with 2 layers of width 32" in card and "## Promotion" not in card
    promote(version, "Ann", "read it", name="carded")
    kept = load_text(f"runs:/{connect().get_model_version('carded', str(version)).run_id}/MODEL_CARD.md")
    assert "Promoted by Ann" in kept and "(champion)" in kept


def test_files_that_were_changed_after_the_promotion_are_refused(bundle):
    promote(register(bundle, "0" * 64, GOOD, PASSED, name="swapped"), "Ann", "good", name="swapped")
    weights = resolve("swapped@champion").bundle / "ar.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(ModelError, match=r"the files of swapped/1 have the digest .*Ann promoted"):
            resolve("swapped@champion")
    finally:
        weights.write_bytes(before)
    assert resolve("swapped@champion").version == 1


def test_an_alias_that_was_removed_by_hand_is_told(bundle):
    promote(register(bundle, "12" * 32, GOOD, PASSED, name="gone"), "Ann", "good", name="gone")
    connect().delete_registered_model_alias("gone", "champion")
    with pytest.raises(ModelError, match="gone has no champion though Ann promoted gone/1"):
        current_champion("gone")


def test_nobody_decides_nothing(bundle):
    version = register(bundle, "c" * 64, GOOD, PASSED, name="anonymous")
    for decide in (promote, reject):
        with pytest.raises(ModelError, match="needs the name of who takes it"):
            decide(version, " ", "because", name="anonymous")
    with pytest.raises(ModelError, match="needs the name of who takes it"):
        rollback("", "because", name="anonymous")
    assert statuses("anonymous") == {version: "candidate"}


def test_mlflow_loads_the_model_and_it_speaks(bundle):
    import mlflow
    import pandas
    from mlflow.exceptions import MlflowException

    version = register(bundle, "4" * 64, GOOD, PASSED, name="speaker")
    model = mlflow.pyfunc.load_model(f"models:/speaker/{version}")

    def rows(**changes):
        wav = base64.b64encode(encode_wave(voice("dee", 1.0), 24_000)).decode()
        return pandas.DataFrame([{"text": "the red boat", "prompt_text": "a house", "prompt_wav": wav, **changes}])

    [spoken] = model.predict(rows(), params={"seed": 3})
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(spoken["wav"])))
    assert rate == spoken["sample_rate"] == 24_000
    assert len(wave) > 0 and wave.ndim == 1
    assert spoken["finish_reason"] in ("eos", "cap")
    assert model.predict(rows(), params={"seed": 3}) == [spoken]
    short = base64.b64encode(encode_wave(voice("dee", 0.5), 24_000)).decode()
    for wrong, sentence in (
        (rows(prompt_wav=short), r"^the prompt of row 1 lasts 0\.50 s; expected 1 to 30 s"),
        (rows(text=" "), "^row 1 has an empty `text`"),
        (pandas.concat([rows(), rows(text=None)]), "^row 2 has an empty `text`"),
        (pandas.concat([rows()] * 17), r"^the request has 17 rows; expected 1 to 16"),
        (rows().drop(columns="prompt_wav"), "missing inputs"),
    ):
        with pytest.raises(MlflowException, match=sentence) as caught:
            model.predict(wrong)
        assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match=r"the parameter `top_p` is 3\.0: Input should be less than"):
        model.predict(rows(), params={"top_p": 3.0})


def test_a_signature_of_a_stranger_is_not_trusted(tmp_path):
    ours, theirs = Keys(tmp_path / "ours"), Keys(tmp_path / "theirs")
    ours.verify("text", ours.sign("text"))
    with pytest.raises(ModelError, match="not trusted here"):
        ours.verify("text", theirs.sign("text"))
    with pytest.raises(ModelError, match="was altered"):
        ours.verify("other text", ours.sign("text"))
    assert (tmp_path / "ours" / "promotion.key").stat().st_mode & 0o077 == 0


def test_a_folder_is_a_model_and_other_things_are_not(bundle, tmp_path):
    assert resolve(str(bundle)).lineage is None
    with pytest.raises(ModelError, match=r"no model\.json"):
        resolve(str(tmp_path))
    for name in ("valle2", "nowhere/at/all", "valle2@"):
        with pytest.raises(ModelError, match="expected `valle2@champion`"):
            resolve(name)
    with pytest.raises(ModelError, match="no registered model valle2/77"):
        resolve("valle2/77")


def test_a_folder_names_its_own_record(bundle):
    record = ModelRecord(model_sha256=bundle_sha256(bundle), stages={}, run="r", created="now")
    path = bundle / "lineage" / f"{record.digest}.json"
    path.parent.mkdir()
    path.write_bytes(record.to_bytes())
    try:
        assert resolve(str(bundle)).lineage == record.digest
        path.write_bytes(b"{}")
        with pytest.raises(LineageError, match="altered"):
            resolve(str(bundle))
    finally:
        path.unlink()
        path.parent.rmdir()


def test_a_killed_training_goes_on_in_its_run(bundle, tmp_path):
    with training_run("ar", config(), "d" * 64, tmp_path) as first:
        first.log(1, {"loss": 3.0})
        first.log(2, {"loss": 2.0})
    with pytest.raises(RuntimeError), training_run("ar", config(), "d" * 64, tmp_path) as second:
        second.log(2, {"loss": 2.0})
        second.log(3, {"loss": 1.0})
        raise RuntimeError
    client = connect()
    run = client.get_run(first.run_id)
    assert second.run_id == first.run_id
    assert [point.step for point in client.get_metric_history(first.run_id, "loss")] == [1, 2, 3]
    assert (run.info.status, run.data.tags["valle2.attempts"]) == ("FAILED", "2")
    assert run.data.params["model.group_size"] == "2"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source)["path"] == "artifacts/tokenize"
    profile = json.loads(run.inputs.dataset_inputs[0].dataset.profile)
    assert profile["segments"] == {"train": 8, "dev": 4, "test": 8} and profile["hours"]["train"] > 0
    assert json.loads(run.inputs.dataset_inputs[0].dataset.schema)["frame_rate"] == 75
    assert tracking_uri().startswith("sqlite:///")
