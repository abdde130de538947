"""The weights of a run that do not train: written once beside its checkpoints, so that a run stands for itself.

`frozen/00000000/` holds them as a checkpoint holds the trained ones, with their digests.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxchop.errors import JaxchopError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.model.tree import flatten
from jaxchop.parallel.channel import Channel
from jaxchop.recover import digest
from jaxchop.recover.checkpoint import Checkpoints, load_weights
from jaxchop.recover.trainable import Flat, Way, settings_of, way_of

log = logging.getLogger("jaxchop")
_FOLDER = "frozen"


def held(folder: Path, frozen: Flat, begun: Mapping[str, Any], hosts: Channel) -> tuple[Flat, str]:
  """Returns the frozen weights of the run in `folder` and their fingerprint: the given ones where it begins now.

  Those that it began with count, because what was fitted on text comes out otherwise on another machine. `begun` is the
  meta of its newest checkpoint. Raises JaxchopError when they are gone and the given ones are others.
  """
  if not frozen:
    return frozen, ""
  checkpoints, wanted = Checkpoints(folder / _FOLDER, hosts=hosts), begun.get("frozen")
  abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), frozen)
  if found := checkpoints.restore_latest(abstract, {}):
    fingerprint = _fingerprint(found.model, hosts)
    if wanted in (None, fingerprint):
      return found.model, fingerprint
  fingerprint = _fingerprint(frozen, hosts)
  if wanted not in (None, fingerprint):
    raise JaxchopError(
      f"{checkpoints.folder}: the weights that do not train are not whole here, and those that the model has now are "
      "others than the run began with; begin again in another folder"
    )
  log.info("Writing the weights that do not train to %s", checkpoints.folder)
  checkpoints.save(0, frozen, {}, {})
  checkpoints.wait()
  return frozen, fingerprint


class Parts(NamedTuple):
  """What a run consists of, whole in this process."""

  way: Way
  trained: Flat
  frozen: Flat
  # What the checkpoint says of itself and its run.
  meta: dict[str, Any]

  @property
  def model(self) -> Llama:
    return self.way.stock(self.trained, self.frozen)


def recovered_parts(checkpoints: Path, architecture: LlamaConfig, layers: int, step: int | None = None) -> Parts:
  """Returns the parts of a run at `step` or its newest checkpoint that verifies.

  Raises JaxchopError when no checkpoint, or not the one asked for, is there and whole.
  """
  trained, meta = load_weights(checkpoints, step)
  way = way_of(settings_of(meta["config"]), architecture, layers)
  rest = flatten(way.like).keys() - way.names
  frozen = load_weights(checkpoints.parent / _FOLDER)[0] if rest else {}
  on_device = lambda flat: {name: jnp.asarray(leaf) for name, leaf in flat.items()}  # noqa: E731
  return Parts(way, on_device(trained), on_device(frozen), meta)


def _fingerprint(frozen: Flat, hosts: Channel) -> str:
  """Returns one digest of all arrays, wherever they lie."""
  mine = digest.finished(digest.started(frozen, copies=False))
  found = digest.combined(hosts.gather("frozen weights", mine))
  return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
