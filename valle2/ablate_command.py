"""`valle2 ablate`: what RAS, its details, top_p, grouping and five readings bring, by one command."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from valle2.config.params import PARAMS, load_config
from valle2.errors import EvaluationError
from valle2.stage import output

OUT = Path("build/ablation")
TOP_PS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""What the paper tries (4.1.1)."""


def ablate(
    out: Annotated[Path, typer.Option(help="folder of the results; a second run goes on there")] = OUT,
    model: Annotated[Path | None, typer.Option(help="voice model folder; the evaluated one if not given")] = None,
    ar: Annotated[
        list[Path] | None, typer.Option(help="train-ar output of another group size, to be joined with the one NAR")
    ] = None,
    top_p: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="nucleus share; again for others; 0, 0.2,... 0.8")
    ] = None,
    readings: Annotated[int, typer.Option(min=1, help="of five-time sampling; 1 leaves it out")] = 5,
    cases: Annotated[int, typer.Option(min=1, help="texts of the first protocol, at most")] = 24,
    params: Annotated[Path, typer.Option(help="parameter file")] = PARAMS,
) -> None:
    """Evaluate a model with RAS on and off, by top_p, by group size and read five times; tables and plots."""
    import torch

    from valle2.evaluation.ablation import ablate as run
    from valle2.evaluation.ablation import grid
    from valle2.evaluation.cases import choose_cases
    from valle2.model_folder import write_bundle

    config = load_config(params)
    torch.set_num_threads(config.runtime.num_threads)
    first = model or output("evaluate") / "model"
    if not (first / "model.json").is_file():
        raise EvaluationError(f"no voice model at {first}; run `valle2 evaluate`, or name one with --model")
    bundles = [first]
    for place, folder in enumerate(ar or []):
        if not (folder / "model.safetensors").is_file():
            raise EvaluationError(
                f"no train-ar output at {folder}; `valle2 sweep train-ar` prints where its points are"
            )
        bundles.append(out / "models" / str(place))
        shutil.rmtree(bundles[-1], ignore_errors=True)
        write_bundle(
            bundles[-1], ar_dir=folder, nar_dir=output("train-nar"), bpe=output("curate") / "bpe.json",
            codec_name=config.tokenize.codec, decoder=config.evaluate.decoder, sampling=config.evaluate.sampling,
        )  # fmt: skip
    settings = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"protocols": config.evaluate.protocols[:1]})}
    )
    chosen = choose_cases(output("tokenize"), settings)[:cases]
    run(grid(bundles, config.evaluate, top_p or TOP_PS, readings), chosen, settings, out)
    print((out / "ablation.md").read_text())
    print(f"plots  {out / 'ablation.png'}")
