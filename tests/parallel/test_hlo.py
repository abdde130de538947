"""What is read from a program's text, on a text that fits a page: loops count their turns, channels once."""

import pytest

from jaxchop.parallel.hlo import read_cost

# Two devices. A loop of three turns gathers beside a product and sums up; before it something is scattered.
TEXT = """HloModule jit_step, is_scheduled=true

%started (x: bf16[4,8]) -> bf16[8,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=2] {'a'}, dimensions={0}
}

%product (x: bf16[4,8], y: bf16[8,8]) -> bf16[4,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %y.1 = bf16[8,8]{1,0} parameter(1)
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%x.1), channel_id=1, replica_groups=mesh['a'=2] {'a'}, dimensions={0}
  ROOT %convolution.1 = bf16[4,8]{1,0} convolution(%x.1, %y.1), dim_labels=bf_io->bf
}

%all-reduce-scatter.1 (z: f32[8,8]) -> f32[4,8] {
  %z = f32[8,8]{1,0} parameter(0)
  %all-reduce.1 = f32[8,8]{1,0} all-reduce(%z), channel_id=2, replica_groups={{0,1}}, to_apply=%add
  ROOT %slice.1 = f32[4,8]{1,0} slice(%all-reduce.1), slice={[0:4], [0:8]}
}

%turn (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x.2 = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), backend_config={"window_config":{"estimated_cycles":"5"}}
  %start = bf16[8,8]{1,0} fusion(%x.2), kind=kCustom, calls=%started
  %y.2 = bf16[4,8]{1,0} fusion(%x.2, %start), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"100"}
  %all-reduce.2 = bf16[4,8]{1,0} all-reduce(%y.2), channel_id=3, replica_groups=[1,2]<=[2], to_apply=%add
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%next, %all-reduce.2)
}

%going (state.1: (s32[], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(4)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (p: bf16[4,8], z.1: f32[8,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %z.1 = f32[8,8]{1,0} parameter(1)
  %begin = s32[] constant(1)
  %scattered = f32[4,8]{1,0} fusion(%z.1), kind=kCustom, calls=%all-reduce-scatter.1
  %kernel = bf16[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"
  %first = (s32[], bf16[4,8]{1,0}) tuple(%begin, %kernel)
  %loop = (s32[], bf16[4,8]{1,0}) while(%first), condition=%going, body=%turn
  ROOT %last = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_cycles_count_as_often_as_their_loop_turns():
  cost = read_cost(TEXT, 2)
  assert (cost.matmul_cycles, cost.other_cycles, cost.kernels) == (300, 15, 1)


def test_cycles_that_cannot_be_told_count_as_none():
  cost = read_cost(TEXT.replace('"estimated_cycles":"5"', f'"estimated_cycles":"{2**63 - 1}"'), 2)
  assert (cost.matmul_cycles, cost.other_cycles) == (300, 0)


def test_a_collective_counts_once_a_turn_by_the_bytes_it_sends():
  found = {one.kind: one for one in read_cost(TEXT, 2).collectives}
  assert found["all-gather"] == ("all-gather", (0, 1), 3 * 8 * 8 * 2 // 2, True)
  assert found["all-reduce"] == ("all-reduce", (0, 1), 3 * 2 * 4 * 8 * 2 // 2, False)
  assert found["reduce-scatter"] == ("reduce-scatter", (0, 1), 8 * 8 * 4 // 2, False)


def test_collectives_that_nothing_goes_on_beside_count_each_although_they_share_a_channel():
  two = "".join(
    f"  %alone.{n} = f32[4,8]{{1,0}} reduce-scatter(%z.1), channel_id=7, replica_groups={{{{0,1}}}}, dimensions={{0}}\n"
    for n in range(2)
  )
  found = read_cost(TEXT.replace("  %begin = s32", two + "  %begin = s32"), 2).collectives
  alone = [one for one in found if one == ("reduce-scatter", (0, 1), 4 * 8 * 4, False)]
  # The third is that of the fusion.
  assert len(alone) == 3


def test_a_loop_that_counts_otherwise_counts_once():
  cost = read_cost(TEXT.replace("direction=LT", "direction=NE"), 2)
  assert cost.matmul_cycles == 100


def test_what_is_sent_to_other_slices_by_instructions_of_their_own_counts_too():
  sent = '  %sent = (f32[16], u32[], token[]) send(%z.1), frontend_attributes={megascale_transfer_type="ALL_REDUCE"}\n'
  text = TEXT.replace("  %begin = s32", sent + "  %begin = s32")
  assert read_cost(text, 2).sent_between_slices == 64


def test_a_text_of_another_form_is_refused():
  with pytest.raises(ValueError, match="no entry computation"):
    read_cost("module @jit_step {}", 2)


# A SparseCore gathers beside a fusion, and scatters with nothing to do meanwhile.
CALLS = """HloModule jit_step, is_scheduled=true

%gathering (x: bf16[4,8]) -> bf16[8,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1}}, dimensions={0}
}

%scattering (z: f32[8,8]) -> f32[4,8] {
  %z = f32[8,8]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = f32[4,8]{1,0} reduce-scatter(%z), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (p: bf16[4,8], q: f32[8,8]) -> f32[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  %a.start = ((bf16[4,8]{1,0}), bf16[8,8]{1,0}) call-start(%p), async_execution_thread="sparsecore", to_apply=%gathering
  %work = bf16[4,8]{1,0} fusion(%p), kind=kLoop, calls=%all, backend_config={"estimated_cycles":"100"}
  %a.done = bf16[8,8]{1,0} call-done(%a.start)
  %b.start = ((f32[8,8]{1,0}), f32[4,8]{1,0}) call-start(%q), async_execution_thread="sparsecore", to_apply=%scattering
  %small = f32[] constant(0)
  ROOT %b.done = f32[4,8]{1,0} call-done(%b.start)
}
"""


def test_what_a_sparse_core_does_is_hidden_where_the_core_has_other_work():
  assert read_cost(CALLS, 2).collectives == (
    ("all-gather", (0, 1), 8 * 8 * 2 // 2, True),
    ("reduce-scatter", (0, 1), 8 * 8 * 4 // 2, False),
  )
