"""The text of a recipe in its three parts: split from one source, or named one by one."""

from jaxchop.config import DataConfig
from jaxchop.data.sources import Document, documents
from jaxchop.data.split import Splits, split_documents, without_overlap


def read_splits(config: DataConfig) -> Splits:
  """Returns calibration, training and held-out text that never overlap; what is not named is split from the source."""
  own = split_documents(
    documents(config.source, text_field=config.text_field),
    held_out=0.0 if config.held_out else config.held_out_share,
    calibration=0.0 if config.calibration else config.calibration_share,
    seed=config.seed,
  )
  calibration, held_out = (_named(spec, config) for spec in (config.calibration, config.held_out))
  if not calibration and not held_out:
    return own
  return without_overlap(calibration or own.calibration, own.training, held_out or own.held_out)


def _named(spec: str | None, config: DataConfig) -> tuple[Document, ...]:
  return tuple(documents(spec, text_field=config.text_field)) if spec else ()
