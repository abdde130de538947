"""Learning from a teacher that is not there: from its most likely tokens, which were computed once.

Shapes: B batch, T sequence, M = B * T tokens, C those of a chunk, V vocabulary, K likely tokens.
"""

import jax
from jax.sharding import PartitionSpec

from jaxchop.data.batch import Batch
from jaxchop.model.chunks import joined, logits, split
from jaxchop.model.divergence import Likely, Teaching, distilled_loss
from jaxchop.model.llama import Llama, hidden
from jaxchop.model.placement import gathered, merged, parted, placed, spec_of
from jaxchop.parallel.sharding import in_order, in_stripes
from jaxchop.recover.objective import computing, inputs
from jaxchop.training import RecoverConfig


def most_likely(teacher: Llama, batch: Batch, config: RecoverConfig) -> Likely:
  """Returns the `config.distill.cache_top` most likely tokens of each prediction and the logarithms of their shares."""
  teacher = computing(teacher, batch, config.compute_dtype, config.layout)
  ids_BT, _, _, segments_BT = inputs(batch)
  x_BTD = hidden(teacher, ids_BT, segments_BT=segments_BT, layout=config.layout, remat="none")
  x_BTD, head_DV = teacher.norm(x_BTD), teacher.head_DV()
  head_VD, cool, top = gathered(head_DV, x_BTD).T, 1 / config.distill.temperature, config.distill.cache_top

  def chunk(_: None, x_CD: jax.Array) -> tuple[None, Likely]:
    logits_VC, spec = cool * logits(head_VD, x_CD), spec_of(x_CD)
    log_z_C = jax.nn.logsumexp(logits_VC, axis=0)
    rows = None if spec is None else PartitionSpec(spec[0], None)
    best_CK = placed(lambda a_VC: jax.lax.top_k(a_VC.T, top)[0], rows, logits_VC)
    ids_CK = placed(lambda a_VC: jax.lax.top_k(a_VC.T, top)[1], rows, logits_VC)
    return None, Likely(ids_CK, best_CK - log_z_C[:, None])

  rows_MD = merged(x_BTD, 1)
  _, found = jax.lax.scan(chunk, None, split(rows_MD, config.loss_chunk))
  return Likely(*(in_order(parted(joined(a, rows_MD), x_BTD, 1)) for a in found))


def learned(student: Llama, batch: Batch, config: RecoverConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns what a step minimises, summed over tokens, and its parts: loss (cross-entropy) and divergence.

  Only the gradient of the first is meant, as with a teacher beside the student (recover/teacher.py).
  """
  settings = config.distill
  student = computing(student, batch, config.compute_dtype, config.layout)
  ids_BT, target_BT, weight_BT, segments_BT = inputs(batch)
  x_BTD = hidden(student, ids_BT, segments_BT=segments_BT, layout=config.layout, remat=config.remat)
  teaching = Teaching(settings.divergence, settings.weight, settings.temperature, config.z_loss)
  likely = Likely(*map(in_stripes, batch.likely))
  loss, divergence = distilled_loss(
    student.norm(x_BTD), student.head_DV(), likely, target_BT, weight_BT, teaching, chunk=config.loss_chunk
  )
  return loss, {"loss": loss, "divergence": divergence}
