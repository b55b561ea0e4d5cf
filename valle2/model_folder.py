"""The voice model folder: weights, text tokenizer, codec and `model.json`; written and read here and nowhere else."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from valle2.bundled import bundled
from valle2.config.sampling import SamplingConfig
from valle2.errors import ModelError
from valle2.stage import digest, file_sha256, write_json
from valle2.vocoder import OWN, PUBLISHED, decoder_digest, vocoder_files

FORMAT = 1
"""Version of the voice model folder."""


def write_bundle(
    folder: Path,
    *,
    ar_dir: Path,
    nar_dir: Path,
    bpe: Path,
    codec_name: str,
    decoder: str,
    sampling: SamplingConfig,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a voice model folder from the two training outputs.

    Args:
        folder: Where; what is there is replaced.
        ar_dir: Output of train-ar.
        nar_dir: Output of train-nar.
        bpe: The text tokenizer's `bpe.json`.
        codec_name: As in `tokenize.codec`; unless it is a published one, its files are copied in.
        decoder: As in `evaluate.decoder`; the same holds.
        sampling: Settings that the model is to be used with.
        dtype: Of the stored weights; they are loaded as fp32.

    Raises:
        ModelError: The two models were trained on different codes or vocabularies.
    """
    facts = {kind: json.loads((path / "config.json").read_text()) for kind, path in (("ar", ar_dir), ("nar", nar_dir))}
    for name in ("codec", "vocab_size"):
        if facts["ar"][name] != facts["nar"][name]:
            raise ModelError(
                f"AR and NAR do not belong together: {name} is {facts['ar'][name]} there and {facts['nar'][name]} "
                "here; run `dvc repro` so that both are of the same data"
            )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for kind, path in (("ar", ar_dir), ("nar", nar_dir)):
        weights = load_file(path / "model.safetensors")
        save_file({key: value.to(dtype) for key, value in weights.items()}, folder / f"{kind}.safetensors")
    shutil.copyfile(bpe, folder / "bpe.json")
    source = bundled("encodec") if codec_name == "bundled" else Path(codec_name)
    if source.is_dir():
        (folder / "codec").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(source / name, folder / "codec" / name)
    decodes = {"name": decoder}
    if decoder != OWN:
        decodes["digest"] = decoder_digest(decoder)
        if decoder != PUBLISHED:
            (folder / "vocos").mkdir()
            for file in vocoder_files(decoder):
                shutil.copyfile(file, folder / "vocos" / file.name)
    codec = facts["ar"]["codec"]
    write_json(folder / "model.json", {
        "format": FORMAT,
        "group_size": facts["ar"]["group_size"],
        "ar": facts["ar"]["transformer"],
        "nar": facts["nar"]["transformer"],
        "vocab_size": facts["ar"]["vocab_size"],
        "codec": {name: codec[name] for name in ("name", "digest", "codes_digest")},
        "decoder": decodes,
        **{name: codec[name] for name in ("sample_rate", "frame_rate", "num_codebooks", "codebook_size")},
        "sampling": sampling.model_dump(),
    })  # fmt: skip


def read_facts(folder: Path) -> dict[str, Any]:
    """What `model.json` says.

    Raises:
        ModelError: The folder is no voice model, or of another version.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise ModelError(f"{folder} is no voice model: it has no model.json; name the folder of a registered model")
    try:
        facts: dict[str, Any] = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is no JSON object ({error}); fetch the voice model again") from error
    if facts.get("format") != FORMAT:
        raise ModelError(f"{path} is of format {facts.get('format')}, this version reads {FORMAT}; update valle2")
    return facts


def model_sha256(folder: Path) -> str:
    """SHA-256 of all that a voice model's speech is made of, wherever its folder is: two of the same speak the same."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return digest([[name, file_sha256(path)] for name, path in names.items() if not name.startswith("lineage/")])
