"""Module groups on the linear modules of real architectures, and the targets that PEFT is given."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lorafront.spaces.modules import EVERYTHING, GROUPS, ModuleProblem, is_head, leaf_names, resolve, shortest_targets


def stack(prefix, inner, *outer):
    """Names of the linears of a model with two layers, in the model's order."""
    return [*(f"{prefix}.{layer}.{name}" for layer in range(2) for name in inner.split()), *outer]


LLAMA = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
PHI_2 = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2"
BERT = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense "
    "intermediate.dense output.dense"
)
DISTILBERT = "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2"
T5 = [f"SelfAttention.{part}" for part in "qkvo"]
T5_CROSS = [f"EncDecAttention.{part}" for part in "qkvo"]
T5_MLP = ["DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"]
T5_ALL = [
    *(f"encoder.block.{b}.layer.{i}.{name}" for b in range(2) for i, part in enumerate((T5, T5_MLP)) for name in part),
    *(
        f"decoder.block.{b}.layer.{i}.{name}"
        for b in range(2)
        for i, part in enumerate((T5, T5_CROSS, T5_MLP))
        for name in part
    ),
]
LINEARS = {
    "llama": stack("model.layers", LLAMA, "lm_head"),
    "phi-2": stack("model.layers", PHI_2, "lm_head"),
    "gpt-2": stack("transformer.h", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj", "lm_head"),
    "neox": stack(
        "gpt_neox.layers",
        "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
        "embed_out",
    ),
    "phi-3": stack("model.layers", "self_attn.o_proj self_attn.qkv_proj mlp.gate_up_proj mlp.down_proj", "lm_head"),
    "bert": stack(
        "bert.encoder.layer", BERT, "bert.pooler.dense", "cls.predictions.transform.dense", "cls.predictions.decoder"
    ),
    "t5": [*T5_ALL, "lm_head"],
    "distilbert": stack("distilbert.transformer.layer", DISTILBERT, "pre_classifier", "classifier"),
}
# What each group means: the ends of the names of one layer, and the targets where they are not those ends.
MEANINGS = [
    ("llama", "query", "q_proj"),
    ("llama", "query+value", "q_proj v_proj"),
    ("llama", "query+key+value", "q_proj k_proj v_proj"),
    ("llama", "output", "o_proj"),
    ("llama", "attention", "q_proj k_proj v_proj o_proj"),
    ("llama", "mlp", "gate_proj up_proj down_proj"),
    ("llama", "attention+mlp", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    ("phi-2", "query+value", "q_proj v_proj"),
    ("phi-2", "attention", "q_proj k_proj v_proj dense"),
    ("phi-2", "mlp", "fc1 fc2"),
    ("gpt-2", "query+key+value", "c_attn"),
    ("gpt-2", "output", "attn.c_proj"),
    ("gpt-2", "attention", "c_attn attn.c_proj"),
    ("gpt-2", "mlp", "c_fc mlp.c_proj"),
    ("gpt-2", "attention+mlp", "c_attn c_proj c_fc"),
    ("neox", "query+key+value", "query_key_value"),
    ("neox", "attention", "query_key_value dense"),
    ("neox", "mlp", "dense_h_to_4h dense_4h_to_h"),
    ("phi-3", "query+key+value", "qkv_proj"),
    ("phi-3", "attention", "o_proj qkv_proj"),
    ("phi-3", "mlp", "gate_up_proj down_proj"),
    ("bert", "query", "query"),
    ("bert", "query+value", "query value"),
    ("bert", "output", "attention.output.dense"),
    ("bert", "attention", "query key value attention.output.dense"),
    ("bert", "mlp", "intermediate.dense 0.output.dense 1.output.dense"),
    ("t5", "query", "q"),
    ("t5", "attention", "q k v o"),
    ("t5", "mlp", "wi_0 wi_1 wo"),
    ("distilbert", "query+value", "q_lin v_lin"),
    ("distilbert", "attention", "q_lin k_lin v_lin out_lin"),
    ("distilbert", "mlp", "lin1 lin2"),
]


def peft_matches(name, targets):
    """PEFT's rule (`check_target_module_exists` of peft.tuners.tuners_utils) for a list of targets."""
    return name in targets or any(name.endswith(f".{target}") for target in targets)


@pytest.mark.parametrize(("model", "group", "targets"), MEANINGS)
def test_groups_mean_the_same_on_every_architecture(model, group, targets):
    """A group resolves to the linears of that role in every layer, and to the shortest targets for them."""
    resolved = resolve(group, LINEARS[model])
    assert set(resolved.targets) == set(targets.split())
    assert list(resolved.names) == [name for name in LINEARS[model] if peft_matches(name, targets.split())]
    assert not any(is_head(name) for name in resolved.names)


@pytest.mark.parametrize("model", LINEARS)
def test_all_linear_is_all_but_the_heads(model):
    """`all-linear` takes every linear of the layers, which are those of attention and mlp, and no output head."""
    everything = resolve(EVERYTHING, LINEARS[model])
    assert everything.names == resolve("attention+mlp", LINEARS[model]).names
    assert [name for name in LINEARS[model] if name not in everything.names] == [
        name for name in LINEARS[model] if is_head(name)
    ]


@pytest.mark.parametrize("model", LINEARS)
@pytest.mark.parametrize("group", [*GROUPS, EVERYTHING, "query+value", "attention+mlp"])
def test_targets_match_exactly_the_names(model, group):
    """Under PEFT's rule the targets of any group that resolves match its names and nothing else."""
    try:
        resolved = resolve(group, LINEARS[model])
    except ModuleProblem:
        assert model in {"gpt-2", "neox", "phi-3"}  # only fused projections refuse a group
        return
    assert [name for name in LINEARS[model] if peft_matches(name, resolved.targets)] == list(resolved.names)


@pytest.mark.parametrize(("model", "fused"), [("gpt-2", "c_attn"), ("neox", "query_key_value"), ("phi-3", "qkv_proj")])
@pytest.mark.parametrize("group", ["query", "key", "value", "query+value", "query+mlp", "value+output"])
def test_a_part_of_a_fused_projection_is_refused(model, fused, group):
    """A share of a fused projection is refused with its name and with what can be asked for instead."""
    with pytest.raises(ModuleProblem) as caught:
        resolve(group, LINEARS[model])
    assert f"fuses query, key, value into {fused}," in str(caught.value)
    assert "use query+key+value, attention or mlp" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "asked", "part", "hint"),
    [
        ("llama", "q_porj", "q_porj", "q_proj"),
        ("llama", "q_proj+v_prj", "v_prj", "v_proj"),
        ("llama", "atention+mlp", "atention", "attention"),
        ("llama", "all_linear", "all_linear", "all-linear"),
        ("gpt-2", "c_atn", "c_atn", "c_attn"),
        ("llama", ".*", ".*", None),
        ("llama", "(", "(", None),
        ("llama", "", "", None),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(model, asked, part, hint):
    """A part that matches nothing is named, with the nearest name and all that the model has."""
    with pytest.raises(ModuleProblem) as caught:
        resolve(asked, LINEARS[model])
    text = str(caught.value)
    assert text.startswith(f"{part!r} matches no linear module of this model.")
    assert ("Did you mean" in text) == (hint is not None)
    assert hint is None or f"Did you mean {hint!r}?" in text
    assert all(name in text for name in [*leaf_names(LINEARS[model]), "attention", "mlp", EVERYTHING])


def test_groups_that_a_model_lacks_are_refused():
    """A model without feed-forward linears that we know refuses `mlp` and does not list it."""
    with pytest.raises(ModuleProblem, match="'mlp' matches no linear") as caught:
        resolve("attention+mlp", ["layers.0.attn.q_proj", "layers.0.attn.v_proj", "layers.0.ffn.w1"])
    assert str(caught.value).endswith("groups: query, value, attention, all-linear")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("q_proj+lm_head", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"]),
        ("model.layers.1.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
        ("0.self_attn.k_proj", ["model.layers.0.self_attn.k_proj"]),
        ("output+1.mlp.up_proj", ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj",
                                  "model.layers.1.mlp.up_proj"]),
    ],
)  # fmt: skip
def test_modules_can_be_named_outright(asked, names):
    """A name or the end of one takes the linears that PEFT would take for it, heads included; groups mix with names."""
    assert list(resolve(asked, LINEARS["llama"]).names) == names


def test_part_of_a_word_is_no_name():
    """The end of a name counts only after a dot: `proj` is none of `q_proj`."""
    with pytest.raises(ModuleProblem, match="'proj' matches no linear"):
        resolve("proj", LINEARS["llama"])


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "0", "1"]), min_size=1, max_size=4).map(".".join),
    min_size=1, max_size=12, unique=True,
)  # fmt: skip


@st.composite
def choice_of_names(draw):
    linears = draw(NAMES)
    return draw(st.lists(st.sampled_from(linears), unique=True)), linears


@given(choice_of_names())
def test_shortest_targets_match_the_chosen_and_nothing_else(drawn):
    """Under PEFT's rule the targets match every chosen name and no other one."""
    chosen, linears = drawn
    others = [name for name in linears if name not in chosen]
    assume(not any(other.endswith(f".{name}") for name in chosen for other in others))  # no targets can tell these
    targets = shortest_targets(chosen, linears)
    assert [name for name in linears if peft_matches(name, targets)] == [name for name in linears if name in chosen]


@given(choice_of_names())
def test_shortest_targets_cannot_be_shorter(drawn):
    """Any target with its first part taken off would match a name that was not chosen."""
    chosen, linears = drawn
    others = [name for name in linears if name not in chosen]
    assume(not any(other.endswith(f".{name}") for name in chosen for other in others))  # no targets can tell these
    for target in shortest_targets(chosen, linears):
        _, _, shorter = target.partition(".")
        assert not shorter or any(peft_matches(other, [shorter]) for other in others)


def test_names_that_no_target_can_tell_are_refused():
    """Where PEFT could not be told to leave another name alone, that is said and nothing is dropped."""
    with pytest.raises(ModuleProblem):
        shortest_targets(["fc"], ["fc", "block.fc"])
