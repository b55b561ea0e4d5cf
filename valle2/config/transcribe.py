"""Parameters of `transcribe`."""

from pydantic import Field

from valle2.config.ingest import IngestParams
from valle2.config.section import Positive, PositiveCount, Section
from valle2.config.workers import RayConfig
from valle2.types import Seconds


class TranscribeConfig(Section):
    """WhisperX segmentation, transcription and alignment."""

    model: str = Field(
        "bundled", description="`bundled`, a WhisperX model name such as large-v3, or a CTranslate2 folder"
    )
    aligner: str = Field(
        "bundled", description="`bundled`, a wav2vec2 CTC model name, or a folder; empty: WhisperX's own choice"
    )
    language: str = Field("en", description="ISO 639-1 code of the speech")
    compute_type: str = Field("int8", description="CTranslate2 weight type: int8, float16, float32")
    batch_size: PositiveCount = Field(4, description="windows per batch")
    chunk_size: Positive = Field(8, description="s; speech is merged to windows of at most this")
    vad_step: Positive = Field(1.25, description="s between the 5 s windows of voice activity detection; WhisperX: 0.5")
    shard_seconds: Positive = Field(
        300, description="s of audio that one worker does at a time: what is in memory, and what a crash repeats"
    )
    identify_language: bool = Field(
        False, description="what Whisper takes the speech for is kept with each segment; needs a multilingual model"
    )
    diarisation: str = Field(
        "", description="pyannote pipeline that tells voices apart where a speaker is assumed: a name such as "
        "pyannote/speaker-diarization-community-1, or a folder with its config.yaml; empty: off"
    )  # fmt: skip
    same_voice: float = Field(
        0.7, description="cosine of pyannote's voice embeddings from which on voices of two stretches are one"
    )
    padding: Seconds = Field(0.1, description="s of audio kept around a segment's first and last word")
    min_duration: Seconds = Field(1.0, description="s; shorter segments are dropped (architecture: 1-20 s cuts)")
    max_duration: Seconds = Field(20.0, description="s; longer segments are dropped")


class TranscribeParams(IngestParams):
    """What the stage reads of the parameters."""

    transcribe: TranscribeConfig = TranscribeConfig()
    ray: RayConfig = RayConfig()
