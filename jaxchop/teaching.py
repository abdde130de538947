"""What the teacher expects of every record that a job trains on, computed before its first step and kept.

The teacher runs once over each record, however often and in whichever order it is then read, and by whom.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxchop.compiler import Program
from jaxchop.data.likely import LikelyTokens
from jaxchop.data.loader import Loader
from jaxchop.model.divergence import Likely
from jaxchop.model.llama import Llama
from jaxchop.parallel.sharding import own_rows, spread_rows
from jaxchop.progress import stage
from jaxchop.recover.likely import most_likely
from jaxchop.subject import Subject

if TYPE_CHECKING:
  from jaxchop.job import Job

# Batches whose likely tokens one file holds: what a job that is stopped computes again at most.
_A_FILE = 64


def taught(job: "Job", loader: Loader, steps: int, load: Callable[[], Llama], mesh: Mesh | None) -> list[LikelyTokens]:
  """Returns by corpus what the teacher expects of the records that so many steps read; what stands is not computed.

  `load` gives the teacher, spread over the mesh. Where several processes share the job, all of them compute and
  process 0 writes.
  """
  settings, found = job.recipe.recover, []
  named = settings.distill.teacher
  identity = job.hosts.first("teacher", lambda: (job.subject if named is None else Subject(named)).identity)
  for number, (corpus, records) in enumerate(zip(loader.corpora, loader.records(steps), strict=True)):
    about = {
      "teacher": identity,
      "records": corpus.digest,
      "top": settings.distill.cache_top,
      "temperature": settings.distill.temperature,
      "compute_dtype": settings.compute_dtype,
    }
    # Opened once, for every byte is checked then: by process 0 now, by the others when all is written.
    opened = functools.cache(functools.partial(LikelyTokens, job.taught_at / corpus.digest[:16], about))
    missing = job.hosts.first(f"not taught of {number}", lambda: opened().missing(records.tolist()))  # noqa: B023
    if missing:
      _write(job, loader, number, missing, opened, load(), mesh)
    found.append(opened())
  return found


def _write(
  job: "Job",
  loader: Loader,
  number: int,
  records: Sequence[int],
  opened: Callable[[], LikelyTokens],
  teacher: Llama,
  mesh: Mesh | None,
) -> None:
  settings, out = job.recipe.recover, opened() if job.hosts.index == 0 else None
  size = settings.batch_size // settings.accumulate
  own = own_rows(mesh, size)
  whole: dict[str, Any] = {} if mesh is None else {"out_shardings": NamedSharding(mesh, PartitionSpec())}
  program: Program[Likely] = Program(functools.partial(most_likely, config=settings), **whole)
  with (
    jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext(),
    stage("Asking the teacher", len(records), "records") as bar,
  ):
    for first in range(0, len(records), _A_FILE * size):
      held, said = records[first : first + _A_FILE * size], []
      for start in range(0, len(held), size):
        # The last batch is filled up with its last record.
        places_B = np.minimum(start + own, len(held) - 1)
        batch = loader.read([(number, held[place]) for place in places_B.tolist()])
        batch = batch if mesh is None else spread_rows(batch, mesh, own, size)
        said.append(jax.tree.map(np.asarray, program(teacher, batch)))
        bar.advance(min(size, len(held) - start))
      if out is not None:
        out.add(held, *(np.concatenate(parts)[: len(held)] for parts in zip(*said, strict=True)))
      # Nobody reads on before it is written.
      job.hosts.gather("taught", True)
