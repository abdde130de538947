"""What the numbers of a run do not say; every published figure with its source."""

from typing import NamedTuple


class Limit(NamedTuple):
  """One thing to know before the model is relied on."""

  lead: str
  text: str


GENERATION = Limit(
  "Generation suffers most.",
  "Depth pruning harms arithmetic and bracket matching most. About 400B tokens of training did not bring them back, "
  "while classification returned to about 90 % and so hides the damage (arXiv 2602.01997). Minitron's 4B models score "
  "16.8 on GSM8K when pruned in depth and 41.2 when pruned in width.",
)
OWN_TASK = Limit("Test your own task.", "No generative task was measured here.")
SMALL_TASKS = Limit(
  "Test your own task.",
  "The small tasks are generated to show damage (sums, brackets, copying, looking up, sorting), each answer written by "
  "the model itself; they do not say what it is worth for your task.",
)
ONE_TEXT = Limit(
  "One data set.",
  "Perplexity was measured on one kind of text. Other text, other languages and longer contexts may have lost more.",
)
PROTOCOL = Limit(
  "Compare like with like.",
  "A perplexity compares only with one of the same protocol: LLaMA-7B on WikiText-2 is 5.68 in windows of 2048 tokens "
  "and 12.62 in windows of 128.",
)
SPEED = Limit(
  "One machine.", "Speed was measured at one prompt length and batch size; other machines and sizes give other ratios."
)
ONE_SEED = Limit("One run.", "It was trained once, with one seed, so the spread is unknown.")
