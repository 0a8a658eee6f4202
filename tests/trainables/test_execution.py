"""Ways to execute a configuration at its effective batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support import lora

from lorafront.trainables.config import TrainingConfig
from lorafront.trainables.execution import BUSY, Execution, executions

PLAIN = TrainingConfig(rows=64)


@given(st.integers(1, 48), st.integers(1, 4), st.integers(1, 2 * BUSY), st.sampled_from(["adamw", "paged_adamw_8bit"]))
def test_every_way_takes_the_same_rows_per_step(batch: int, passes: int, tokens: int, optimizer) -> None:
    """Each once; the given one is among them, and none is quicker than one before it with the same optimizer."""
    training = PLAIN.model_copy(update={"optimizer": optimizer})
    one = lora(batch_size=batch, gradient_accumulation=passes)
    ways = executions(one, training, tokens)
    assert {way.batch_size * way.gradient_accumulation for way in ways} == {batch * passes}
    assert len(set(ways)) == len(ways)
    assert Execution.given(one, training) in ways
    costs = [way.cost(tokens) for way in ways if way.optimizer == "adamw"]
    assert costs == sorted(costs)
    if optimizer != "adamw":
        assert {way.optimizer for way in ways} == {optimizer}


def test_the_quickest_comes_first_and_of_equals_the_smallest() -> None:
    """Rows that are long enough keep a GPU busy one by one; short ones have to go together."""
    one = lora(batch_size=8, gradient_accumulation=1)
    assert executions(one, PLAIN, BUSY)[0].label == "8 x 1 rows"
    assert executions(one, PLAIN, BUSY // 8)[0].label == "1 x 8 rows"
    assert executions(one, PLAIN, BUSY)[-1].label == "1 x 8 rows, checkpointing, paged optimizer"


def test_a_way_is_applied_to_configuration_and_training() -> None:
    """What it does not speak of stays."""
    one = lora(batch_size=8, gradient_accumulation=1)
    way = executions(one, PLAIN, BUSY)[-1]
    changed, training = way.applied(one, PLAIN)
    assert Execution.given(changed, training) == way
    assert changed.model_copy(update={"batch_size": 8, "gradient_accumulation": 1}) == one
    assert training.rows == 64
