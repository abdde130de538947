"""A conversation as text: what a model is asked by, and from where to where it answers."""

import json

import pytest
import tiny_models
import transformers

from jaxchop.data.written import Written, is_written
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.subject import Subject

TALK = [("user", "Name a colour."), ("assistant", "Red."), ("user", "Another?"), ("assistant", "Blue, \n")]
ALPACA = {"instruction": "Count the words.", "input": "one two", "output": "2"}


@pytest.fixture
def tokenizer(tiny_tokenizer):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tiny_tokenizer, chat_template=tiny_models.TEMPLATE, **tiny_models.ROLES
  )


@pytest.fixture
def write(tmp_path, tokenizer):
  def documents(way, *rows, by=tokenizer, without=()):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(Written(f"{way}:{path}", by, by.eos_token_id, frozenset(without)))

  return documents


def talk(turns=TALK):
  return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_what_stands_before_a_spec_says_how_it_is_written():
  assert is_written("chat:rows.jsonl") and is_written("alpaca:hf://org/name")
  assert not is_written("rows.jsonl") and not is_written("hf://org/name") and not is_written("builtin")


def test_answers_begin_where_prompts_end_and_end_with_the_turn(write):
  (document,) = write("chat", talk())
  assert document.parts == (
    ("<|start|>user\nName a colour.<|end|>\n<|start|>assistant\n", False),
    ("Red.<|end|>", True),
    ("\n<|start|>user\nAnother?<|end|>\n<|start|>assistant\n", False),
    ("Blue, \n<|end|>", True),
    ("\n", False),
  )


def test_the_template_of_a_real_model_is_masked_token_by_token(write):
  tokenizer = Subject("builtin").tokenizer
  (document,) = write("chat", talk(), by=tokenizer)
  tokens = [
    (tokenizer.decode([token]), target)
    for part, target in document.parts
    for token in tokenizer.encode(part, add_special_tokens=False)
  ]
  predicted = [text for text, target in tokens if target]
  assert predicted == ["Red", ".", "<|im_end|>", "Blue", ",", " \n", "<|im_end|>"]
  prompt = tokenizer.apply_chat_template(talk(TALK[:1])["messages"], add_generation_prompt=True)["input_ids"]
  first = [target for _, target in tokens].index(True)
  # What stands before an answer is, token by token, what the model is asked by.
  assert prompt == tokenizer.encode("".join(text for text, _ in tokens[:first]), add_special_tokens=False)
  assert len(prompt) == first


def test_alpaca_is_written_in_its_own_words(write):
  asked, about = write("alpaca", {"instruction": "Name a colour.", "output": "Red."}, ALPACA)
  assert asked.parts == (
    (
      "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
      "### Instruction:\nName a colour.\n\n### Response:\n",
      False,
    ),
    ("Red.<|end|>", True),
  )
  assert about.parts[0][0].endswith(
    "request.\n\n### Instruction:\nCount the words.\n\n### Input:\none two\n\n### Response:\n"
  )
  assert ", paired with an input that provides further context. Write" in about.parts[0][0]


def test_alpaca_begins_with_bos_where_prompts_do(write, tokenizer):
  class Beginning(transformers.PreTrainedTokenizerFast):
    def __call__(self, text, **settings):
      found = super().__call__(text, **settings)
      found["input_ids"] = [self.bos_token_id, *found["input_ids"]]
      return found

  by = Beginning(tokenizer_object=tokenizer.backend_tokenizer, **tiny_models.ROLES)
  assert write("alpaca", ALPACA, by=by)[0].text.startswith("<|start|>Below is an")


def test_a_chat_puts_what_a_question_is_about_behind_it(write):
  assert "Count the words.\n\none two<|end|>" in write("chat", ALPACA)[0].text


def test_conversations_that_answer_with_held_out_text_are_left_out(write):
  held = "a paragraph of at least five words"
  rows = [{"prompt": "Say it.", "completion": f"Here:\n\n{held}\n\nDone."}, {"prompt": held, "completion": "No."}]
  (left,) = write("chat", *rows, without=[held])
  assert left.name.endswith(":2")


def test_what_has_no_template_is_told_of_the_other_way(write, tiny_tokenizer):
  bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer, **tiny_models.ROLES)
  with pytest.raises(UsageError, match=r"the model's tokenizer has no chat template; write alpaca:.*rows\.jsonl"):
    write("chat", talk(), by=bare)


def test_a_template_that_rewrites_what_it_wrote_is_refused(write, tokenizer):
  tokenizer.chat_template = "{{ messages | length }}" + tiny_models.TEMPLATE
  with pytest.raises(
    JaxchopError, match=r"rows\.jsonl:1: the chat template writes the beginning .* otherwise when more"
  ):
    write("chat", talk())


def test_a_template_that_refuses_names_the_row(write, tokenizer):
  tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
  with pytest.raises(JaxchopError, match=r"rows\.jsonl:1: the chat template refuses it \(roles must alternate\)"):
    write("chat", talk())


def test_a_template_with_a_date_writes_the_same_text_every_day(write, tokenizer):
  tokenizer.chat_template = (
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + tiny_models.TEMPLATE
  )
  assert write("chat", talk())[0].text.startswith("26 Jul 2024<|start|>")


def test_alpaca_takes_no_longer_talk(write):
  with pytest.raises(JaxchopError, match="takes one question and one answer, not user, assistant, user, assistant"):
    write("alpaca", talk())
