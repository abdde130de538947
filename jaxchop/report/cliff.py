"""Whether what a model writes by itself has fallen off, in words: perplexity and classification hide it."""

from jaxchop import wording

# Below this share of the capability probe a model has little to lose; at or below this share of what it had, it fell.
_ABLE, _FALLEN = 0.15, 0.5


def is_cliff(solved: float, before: float) -> bool:
  """Returns whether a model that solves this share of the probe has fallen off from one that solves the other."""
  return before >= _ABLE and solved <= _FALLEN * before


def solves(name: str, solved: float, original: str, before: float) -> str:
  """Returns in a sentence what share of the probe a model solves beside its original, and what that shows."""
  told = f"{name} solves {wording.percent(solved)} of the small generated tasks, {original} {wording.percent(before)}"
  if is_cliff(solved, before):
    return f"A cliff: {told}, so what it writes has lost more than its perplexity says."
  told = told[0].upper() + told[1:]
  return f"{told}: too few to show a loss." if before < _ABLE else f"{told}."
