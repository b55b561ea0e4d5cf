"""The voice model as MLflow loads it: `mlflow.pyfunc.load_model("models:/valle2@champion")`.

MLflow runs this file when a model is loaded (models-from-code), so it is imported nowhere; `valle2.registry` logs it.
A row is a text to say, a prompt (base64 of an audio file, or samples at the model's rate) and what is said in the
prompt. The answer has the waveform and its rate.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from valle2.audio import read_wave
from valle2.config.sampling import SamplingConfig
from valle2.errors import ModelError
from valle2.prompt import check_prompt
from valle2.synthesis import Request, Synthesizer


class VoiceModel(PythonModel):
    """A synthesizer behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the voice model folder once."""
        self.synthesizer = Synthesizer.from_path(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: "pandas.DataFrame", params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Say each row's text in the voice of its prompt.

        Args:
            context: Unused; the model was loaded by `load_context`.
            model_input: Columns `text`, `prompt_text`, and `prompt_wav` (base64) or `prompt` (samples).
            params: `seed`, and `top_p` and `max_seconds` where they should differ from the model's own.

        Returns:
            For each row `waveform` (in [-1, 1]), `sample_rate` (Hz) and `finish_reason` (eos or cap).
        """
        wanted = dict(params or {})
        seed = int(wanted.pop("seed", 0))
        changes = {name: value for name, value in wanted.items() if value is not None and value >= 0}
        sampling = SamplingConfig.model_validate(self.synthesizer.sampling.model_dump() | changes)
        rows = model_input.to_dict(orient="records")
        requests = [
            Request(str(row["text"]), self._prompt(row), str(row["prompt_text"]), seed + index)
            for index, row in enumerate(rows)
        ]
        return [
            {
                "waveform": [float(sample) for sample in spoken.waveform],
                "sample_rate": self.synthesizer.sample_rate,
                "finish_reason": spoken.finish_reason,
            }
            for spoken in self.synthesizer.synthesize_texts(requests, sampling)
        ]

    def _prompt(self, row: dict[str, Any]) -> torch.Tensor:
        encoded, samples = row.get("prompt_wav"), row.get("prompt")
        if isinstance(encoded, str) and encoded:
            wave = read_wave(base64.b64decode(encoded), self.synthesizer.sample_rate)
        elif isinstance(samples, list | tuple | np.ndarray) and len(samples):
            wave = np.asarray(samples, np.float32)
        else:
            raise ModelError(
                "a row has no prompt; give `prompt_wav`, the base64 of an audio file, or `prompt`, a list of samples "
                f"at {self.synthesizer.sample_rate} Hz"
            )
        check_prompt(wave, self.synthesizer.sample_rate, "a row's prompt")
        return torch.from_numpy(wave)


set_model(VoiceModel())
