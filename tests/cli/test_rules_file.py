"""Rules files: what they mean, in which order, and what is said about those that mean nothing."""

import keras
import numpy as np
import pytest

import inbounds as ib
from inbounds._model.rules_file import parse_set, read_rules
from inbounds.constraints import SETS, signature
from instead import codes

from .conftest import small_model

pytestmark = pytest.mark.once

PRINTED = [
    ib.NonNeg(),
    ib.NonPos(),
    ib.Box(-1, 1),
    ib.Box(low=0, high=np.inf),
    ib.Box(low=-np.inf, high=[0.5, np.inf]),
    ib.Box([[0, 1], [2, 3]], 4),
    ib.Fixed([0.0, 1.0]),
    ib.MaxNorm(1.5),
    ib.MaxNorm(1.5, axis=[0, -2]),
    ib.MinMaxNorm(0.5, 1, rate=0.5),
    ib.UnitNorm(axis=0),
    ib.FrobeniusNorm(3),
    ib.Joint(ib.MaxNorm(1e-3)),
    ib.Joint(ib.Box(-1, 1), weights=("kernel", "recurrent_kernel", "bias")),
]


@pytest.mark.parametrize("given", PRINTED, ids=repr)
def test_a_set_is_read_from_what_it_prints_as(given):
    assert parse_set(repr(given)) == given


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("NonNeg", ib.NonNeg()),
        ("  max_norm( 3 ) ", ib.MaxNorm(3)),
        ("non_neg", ib.NonNeg()),
        ("Joint(NonNeg)", ib.Joint(ib.NonNeg())),
        ("Joint(max_norm(max_value=+2), weights=['kernel', 'bias'])", ib.Joint(ib.MaxNorm(2))),
        ("MaxNorm(2, axis=None)", ib.MaxNorm(2)),
        ("Box(-inf, (1, 2))", ib.Box(-np.inf, [1, 2])),
        ("Box(float('-inf'), float('inf'))", ib.Box(-np.inf, np.inf)),
    ],
)
def test_names_alone_twins_and_nested_sets(text, meant):
    assert parse_set(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MaxNrom(2)", "MaxNorm"),
        ("maxnorm(2)", "max_norm"),
        ("nonneg", "non_neg"),
        ("Box", "Instead: Box(low=-1.0, high=1.0)"),
        ("MaxNorm", "Instead: MaxNorm(max_value=2.0)"),
        ("Joint(max_norm)", "Instead: MaxNorm(max_value=2.0)"),
        ("Box(1)", "Box(low, high, center=None)"),
        ("MaxNorm(radius=2)", "MaxNorm(max_value=2.0, axis=None, center=None)"),
        ("MaxNorm(1, 2, 3, 4)", "MaxNorm(max_value=2.0, axis=None, center=None)"),
        ("MaxNorm(-2)", "max_value=-2"),
        ("MaxNorm('2')", "max_value='2'"),
        ("MaxNorm(nan)", "max_value=nan"),
        ("Box(2, 1)", "low=2, high=1"),
        ("Joint(MaxNorm(1, axis=0))", "Joint"),
        ("NonNeg().where()", "Instead: MaxNorm(1.0).where([True, True, False])"),
        ("NonNeg().on(1, 2)", "Instead: MaxNorm(1.0).on(inputs=[0, 3])"),
        ("Custom(print)", "in Python"),
        ("Joint(Custom)", "in Python"),
        ("", "not the code of a set"),
        ("MaxNorm(", "not the code of a set"),
        ("1.5", "not the code of a set"),
        ("[MaxNorm(1)]", "not the code of a set"),
        ("ib.MaxNorm(1)", "not the code of a set"),
        ("MaxNorm(1)(2)", "not the code of a set"),
        ("MaxNorm(**{})", "not the code of a set"),
        ("MaxNorm(max_value=1, max_value=2)", "not the code of a set"),
        ("MaxNorm(*[1])", "An argument is not"),
        ("MaxNorm(1 + 1)", "An argument is not"),
        ("MaxNorm(-'a')", "An argument is not"),
        ("MaxNorm(-True)", "An argument is not"),
        ("MaxNorm(1j)", "An argument is not"),
        ("MaxNorm({})", "An argument is not"),
        ("MaxNorm(float('1'))", "'float'"),
        ("MaxNorm(().__class__)", "An argument is not"),
        ("MaxNorm(open('/etc/passwd'))", "'open'"),
        ("__import__('os').getcwd()", "not the code of a set"),
        ("(lambda: 0)()", "not the code of a set"),
        ("(" * 500, "not the code of a set"),
        ("Joint(" * 50 + ")" * 50, "Joint"),
        ("MaxNorm(" + "-" * 5000 + "1)", "not the code of a set"),
        ("MaxNorm(\0)", "not the code of a set"),
    ],
)
def test_code_that_is_no_set_is_an_error_and_is_never_run(text, said):
    with pytest.raises(ib.SetError) as caught:
        parse_set(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    for code in codes(str(caught.value).split("Instead: ")[1]):
        assert code == "inbounds.constrain(model, rules)" or isinstance(parse_set(code), ib.Set)


@pytest.mark.parametrize(
    "made",
    [
        ib.NonNeg() & ib.MaxNorm(1),
        (ib.NonNeg() & ib.SumTo(1)).where([True, False, True]),
        ib.Joint(ib.L1Ball(1).on(inputs=[0, 2])),
        ib.MaxNorm(1, center="current"),
        ib.Monotone().where([[True], [False]]) & ib.Box(-1, 1),
        ib.Fixed(0.0).where("not causal") & ib.Fixed(0.0).where("not banded", width=2),
        (ib.NonNeg() & ib.MaxNorm(1)).per("heads") & ib.MaxNorm(2).where([True, False]).per("inputs"),
    ],
    ids=repr,
)
def test_what_operators_make_is_written_as_it_prints(made):
    assert parse_set(repr(made)) == made


@pytest.mark.parametrize(
    "text", ["NonNeg() & 1", "NonNeg() | MaxNorm(1)", "NonNeg().project([[1]])", "Box.where([True])"]
)
def test_other_operators_are_an_error(text):
    with pytest.raises(ib.SetError):
        parse_set(text)


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_signature_is_code_with_the_defaults(name):
    assert signature(SETS[name]).startswith(f"{name}(")
    assert ":" not in signature(SETS[name])


def held_sets(model, path):
    """The sets that a rules file leads to, by the last two parts of the weights' paths."""
    report = ib.audit(model, read_rules(path, model)[0])
    return {"/".join(path.split("/")[-2:]): parse_set(row.set) for row in report.constrained for path in row.paths}


def test_both_tables_become_the_mapping_that_constrain_takes(rules):
    path = rules(
        """
        [rules]
        "conv*/kernel" = "MaxNorm(1.5)"
        "**/gamma" = "Box(0.5, 2.0)"

        [layers]
        Dense = "Joint(MaxNorm(2.0))"
        head = {kernel = "NonNeg", bias = "Box(-1, 1)"}
        """
    )
    model = small_model()
    head = model.get_layer("head")
    assert read_rules(path, model)[0] == {
        "conv*/kernel": ib.MaxNorm(1.5),
        "**/gamma": ib.Box(0.5, 2.0),
        keras.layers.Dense: ib.Joint(ib.MaxNorm(2.0)),
        head: {"kernel": ib.NonNeg(), "bias": ib.Box(-1, 1)},
    }
    assert held_sets(model, path) == {
        "conv/kernel": ib.MaxNorm(1.5),
        "norm/gamma": ib.Box(0.5, 2.0),
        "hidden/kernel": ib.Joint(ib.MaxNorm(2.0)),
        "hidden/bias": ib.Joint(ib.MaxNorm(2.0)),
        "head/kernel": ib.NonNeg(),
        "head/bias": ib.Box(-1, 1),
    }


GLOB = '[rules]\n"**/kernel" = "MaxNorm(1)"\n'
LAYER = '[layers]\nhead.kernel = "NonNeg"\n'


@pytest.mark.parametrize(
    ("text", "on_head"),
    [
        (GLOB + LAYER, ib.NonNeg()),
        (LAYER + GLOB, ib.MaxNorm(1)),
        ('[rules]\n"**/kernel" = "MaxNorm(1)"\n"head/*" = "NonNeg"\n', ib.NonNeg()),
        ('[rules]\n"head/*" = "NonNeg"\n"**/kernel" = "MaxNorm(1)"\n', ib.MaxNorm(1)),
        ('[layers.Dense]\nkernel = "MaxNorm(1)"\n[layers.head]\nkernel = "NonNeg"\n', ib.NonNeg()),
        ('[layers.head]\nkernel = "NonNeg"\n[layers.Dense]\nkernel = "MaxNorm(1)"\n', ib.MaxNorm(1)),
    ],
    ids=["rules-layers", "layers-rules", "globs", "globs-turned", "class-name", "name-class"],
)
def test_the_last_rule_in_the_file_wins(rules, text, on_head):
    assert held_sets(small_model(), rules(text))["head/kernel"] == on_head


def test_a_class_may_be_a_base_of_the_layers_classes(rules):
    class Mine(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((3,)), Mine(2, name="mine"), keras.layers.Dense(2, name="other")])
    assert set(held_sets(model, rules('[layers]\nMine = "Joint(MaxNorm(1))"'))) == {"mine/kernel", "mine/bias"}
    assert len(held_sets(model, rules('[layers]\nDense.kernel = "MaxNorm(1)"'))) == 2


def test_a_name_stands_for_every_layer_of_that_name(rules):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="head")], name="inner")
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(3, name="head")], name="outer")
    assert len(read_rules(rules('[layers]\nhead = "Joint(NonNeg)"'), model)[0]) == 2


def test_a_name_that_is_a_class_and_a_layer_is_an_error(rules):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="Dense")])
    with pytest.raises(ib.FileError, match=r"the class keras.*Dense and the layer Dense"):
        read_rules(rules('[layers]\nDense = "Joint(NonNeg)"'), model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rules"),
        ("[rules]\n", "has no rules"),
        ('[rules]\n**/kernel = "NonNeg"\n', "line 2, column 1"),
        ('[rules]\n"**/kernel" = NonNeg\n', "line 2, column 15"),
        ('[rules]\n"kernel" = "NonNeg"\n"kernel" = "NonPos"\n', "line 3"),
        ('[rule]\n"kernel" = "NonNeg"\n', "Instead: rules"),
        (
            'metric = "evil"\n[rules]\n"kernel" = "NonNeg"\n',
            "`metric` of a rules file is not 'auto', 'optimizer' or",
        ),
        ('metric = 7\n[rules]\n"kernel" = "NonNeg"\n', "metric=7"),
        ('every = 0\n[rules]\n"kernel" = "NonNeg"\n', '`every` of a rules file is not "epoch"'),
        ('every = -1\n[rules]\n"kernel" = "NonNeg"\n', "every=-1"),
        ('every = 1.5\n[rules]\n"kernel" = "NonNeg"\n', "every=1.5"),
        ('every = "never"\n[rules]\n"kernel" = "NonNeg"\n', "every='never'"),
        ('[rules]\n"kernel" = "NonNeg"\nevery = 0\n', "[rules], every"),
        ('evry = 2\n[rules]\n"kernel" = "NonNeg"\n', "Instead: every"),
        ('rules = "NonNeg"\n', "[rules] is not a table"),
        ('[rules]\n"kernel" = 1.5\n', "in quotes"),
        ('[rules]\nhead.kernel = "NonNeg"\n', "in quotes"),
        ('[rules]\n"kernel" = "MaxNrom(1)"\n', "Instead: MaxNorm"),
        ('[rules]\n"kernel" = "MaxNorm(-1)"\n', "max_value=-1"),
        ('[layers]\nDense.kernel = "MaxNorm(-1)"\n', "[layers], Dense, kernel"),
        ('[layers]\nDenes = "Joint(NonNeg)"\n', "Instead: Dense"),
        ('[layers]\nhaed = "Joint(NonNeg)"\n', "Instead: head"),
        ('[layers]\nConv3D = "Joint(NonNeg)"\n', "Instead: Conv2D"),
    ],
)
def test_a_file_with_a_mistake_is_an_error_that_says_where_and_what_instead(rules, text, said):
    path = rules(text)
    with pytest.raises(ib.FileError) as caught:
        read_rules(path, small_model())
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_says_how_the_sets_are_trained(rules):
    text = '[rules]\n"kernel" = "NonNeg"\n'
    _, settings = read_rules(rules(f'metric = "euclidean"\nevery = 10\ngradient = "full"\n{text}'), small_model())
    assert settings == {"metric": "euclidean", "every": 10, "gradient": "full", "latent": "auto"}
    _, settings = read_rules(rules(f'every = "epoch"\n{text}'), small_model())
    assert settings == {"metric": "auto", "every": "epoch", "gradient": "reduced", "latent": "auto"}


def test_files_that_are_not_text_or_not_there(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name, said in [
        ("binary.toml", "not UTF-8"),
        ("none.toml", "Can't read the rules file: no such file"),
        (".", "directory"),
    ]:
        with pytest.raises(ib.FileError, match=said):
            read_rules(tmp_path / name, small_model())
