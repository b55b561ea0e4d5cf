"""The voice model as MLflow loads and serves it: `mlflow.pyfunc.load_model`, `mlflow models serve`, `... predict`.

MLflow runs this file when a model is loaded (models-from-code), so it is imported nowhere; `valle2.registry` logs it.
A row is a text to say, a prompt (base64 of an audio file) and what is said in it; the answer is the speech, as base64
of a WAV file. Limits are in `valle2.speech_request`; a row beyond them is MLflow's HTTP status 400.
"""

import base64
import os
import threading
from pathlib import Path
from typing import Any

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import ValidationError

# Read when torch is imported; see `valle2.cli.main`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from valle2.config.sampling import SamplingConfig
from valle2.errors import ModelError
from valle2.speech_request import MOST_ROWS, read_request
from valle2.synthesis import Synthesizer
from valle2.voice_output import speech_bytes


class VoiceModel(PythonModel):
    """A synthesizer behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the voice model folder once."""
        self.synthesizer = Synthesizer.from_path(Path(context.artifacts["bundle"]))
        self.turn = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: "pandas.DataFrame", params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Say each row's text in the voice of its prompt.

        Args:
            context: Unused; the model was loaded by `load_context`.
            model_input: Columns `text`, `prompt_text` and `prompt_wav` (base64 of WAV, FLAC, OGG or MP3).
            params: `seed` of the first row, from which the others' count up; `top_p` and `max_seconds` where they
                should differ from the model's own.

        Returns:
            For each row `wav` (base64 of a 16-bit WAV file), `sample_rate` (Hz) and `finish_reason` (eos or cap).

        Raises:
            MlflowException: A row or parameter is not as expected; its message is one sentence.
        """
        try:
            return self._speak(model_input.to_dict(orient="records"), dict(params or {}))
        except ModelError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _speak(self, rows: list[dict[str, Any]], params: dict[str, Any]) -> list[dict[str, Any]]:
        if not 1 <= len(rows) <= MOST_ROWS:
            raise ModelError(f"the request has {len(rows)} rows; expected 1 to {MOST_ROWS}")
        seed, rate = int(params.pop("seed", 0)), self.synthesizer.sample_rate
        sampling = self._sampling(params)
        requests = [
            read_request(
                _said(row["text"]),
                _said(row["prompt_wav"]),
                _said(row["prompt_text"]),
                seed + index,
                rate,
                f"row {index + 1}",
            )
            for index, row in enumerate(rows)
        ]
        # MLflow's server answers requests in threads; one at a time has the processor's cores and bounded memory.
        with self.turn:
            spoken = self.synthesizer.synthesize_texts(requests, sampling)
        return [
            {
                "wav": base64.b64encode(speech_bytes(one.waveform, rate)).decode(),
                "sample_rate": rate,
                "finish_reason": one.finish_reason,
            }
            for one in spoken
        ]

    def _sampling(self, params: dict[str, Any]) -> SamplingConfig:
        own = self.synthesizer.sampling.model_dump()
        # A negative value stands for the model's own: MLflow's parameters cannot be absent.
        changes = {name: value for name, value in params.items() if value is not None and value >= 0}
        try:
            return SamplingConfig.model_validate(own | changes)
        except ValidationError as error:
            item = error.errors()[0]
            name = ".".join(map(str, item["loc"]))
            raise ModelError(f"the parameter `{name}` is {item['input']!r}: {item['msg']}") from error


def _said(value: Any) -> str:
    """A cell that was left out (None, or pandas' NaN) says nothing; its name would be spoken otherwise."""
    return value if isinstance(value, str) else ""


set_model(VoiceModel())
