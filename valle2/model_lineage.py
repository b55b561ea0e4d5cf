"""From a model's name to its verified lineage record and a reader of all that it names."""

from dataclasses import dataclass

from valle2.errors import LineageError
from valle2.registry import bundle_sha256, resolve
from valle2.tracking import home
from valle2.trust.lineage import LineageStore, ModelRecord, StageRecord, records_in
from valle2.trust.trace import RecordReader, check_files


@dataclass(frozen=True)
class ModelLineage:
    """A model whose files are those of its record."""

    name: str
    """As asked for, with the version and its status."""
    digest: str
    """Of the model's record."""
    read: RecordReader
    """Records that the model carries, else those of the store."""


def model_lineage(model: str) -> ModelLineage:
    """Find a model and its record.

    Args:
        model: `valle2@champion`, `valle2/3`, or a voice model folder.

    Raises:
        ModelError: There is no such model.
        LineageError: It has no record, or is not the model that its record names.
    """
    found = resolve(model)
    if not found.lineage:
        raise LineageError(
            f"{found.name} has no lineage record: none in {found.bundle / 'lineage'} is of these files; models "
            "that the retrain flow made have one"
        )
    carried, store = records_in(found.bundle), LineageStore(home() / "lineage")

    def read(name: str) -> StageRecord | ModelRecord:
        return carried[name] if name in carried else store.get(name)

    record = read(found.lineage)
    if isinstance(record, ModelRecord):
        check_files(record, bundle_sha256(found.bundle), found.name)
    return ModelLineage(found.name, found.lineage, read)
