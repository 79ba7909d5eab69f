"""The pickle reader builds plain values and calls nothing, whatever a pickle asks for."""

from __future__ import annotations

import collections
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

from omics.data.errors import InputDataError
from omics.models.published.checkpoint_settings import plain_values
from omics.models.published.pickle_values import (
    MAX_BYTES,
    DamagedCheckpointError,
    Record,
    UnsafeCheckpointError,
    read_pickle,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Reduced:
    """Pickles as a call of anything."""

    def __init__(self, target, *arguments, state=None):
        self.parts = (target, arguments) if state is None else (target, arguments, state)

    def __reduce__(self):
        return self.parts


def by_name(module, name, arguments=b")", after=b"R."):
    """Return a pickle that calls a global by its name, which need not exist here."""
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + after


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def one_tuple(value):
    return text(value) + b"\x85"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_what_they_were(protocol):
    value = {
        "numbers": [1, -2, 3.5, 2**70, True, False, None],
        "texts": ("a", "", "é", b"bytes", b""),
        "nested": {"a": {"b": [{}, [], ()]}},
        1: 2,
        (0, "k"): "tuple key",
        "set": {1, 2},
        "frozen": frozenset({3}),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "scalars": [np.float64(0.5), np.int32(-3), np.float32(0.25), np.bool_(True), np.uint8(7)],
    }
    found = read_pickle(pickle.dumps(value, protocol), "case")
    assert found["scalars"] == [0.5, -3, 0.25, True, 7]
    assert {type(each) for each in found["scalars"]} == {float, int, bool}
    for made in (found, value):
        del made["scalars"]
    assert found == value


def test_a_value_named_twice_is_one_value():
    shared = [1]
    found = read_pickle(pickle.dumps([shared, shared]), "case")
    found[0].append(2)
    assert found == [[1, 2], [1, 2]]


@pytest.fixture
def record_classes(monkeypatch):
    """Classes of a package that is not installed, such as a checkpoint may name."""
    module = types.ModuleType("bmfm_targets.config")
    for name in ("Config", "Kind"):
        made = type(name, (), {"__module__": module.__name__, "__qualname__": name})
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "bmfm_targets", types.ModuleType("bmfm_targets"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_of_known_packages_become_records(record_classes, protocol):
    config = record_classes.Config()
    config.size, config.parts = 3, [{"a": (1, 2)}]
    kind = Reduced(record_classes.Kind, "torch")
    found = read_pickle(pickle.dumps({"c": config, "k": kind}, protocol), "case")
    assert found["c"] == Record(
        "bmfm_targets.config.Config", (), {"size": 3, "parts": [{"a": (1, 2)}]}
    )
    assert found["k"] == Record("bmfm_targets.config.Kind", ("torch",), {})
    assert plain_values(found, "case") == {
        "c": {"size": 3, "parts": [{"a": [1, 2]}]},
        "k": "torch",
    }
    path = read_pickle(pickle.dumps(pathlib.PurePosixPath("a/b"), protocol), "case")
    assert path.name.startswith("pathlib.")


def test_state_in_slots_and_items_are_fields_too():
    slots = by_name("bmfm_targets", "Slotted", b")", b"\x81N}" + text("a") + b"K\x01s\x86b.")
    assert read_pickle(slots, "case").fields == {"a": 1}
    items = by_name("omegaconf.dictconfig", "DictConfig", b")", b"\x81(" + text("a") + b"K\x01u.")
    assert read_pickle(items, "case").fields == {"a": 1}


DANGEROUS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "check_output"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "open"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("__builtin__", "apply"),
    ("importlib", "import_module"),
    ("runpy", "_run_code"),
    ("code", "InteractiveInterpreter"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("marshal", "loads"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("copyreg", "_reconstructor"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("functools", "partial"),
    ("itertools", "starmap"),
    ("webbrowser", "open"),
    ("ctypes", "CDLL"),
    ("socket", "create_connection"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.jit", "load"),
    ("torch.hub", "load"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch.utils._config_module", "load_config"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._inductor.codecache", "compile_file"),
    ("numpy", "load"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("numpy.testing._private.utils", "runstring"),
    ("lightning.pytorch.core.saving", "_load_from_checkpoint"),
    ("hydra.utils", "instantiate"),
    ("transformers.utils", "import_module"),
    ("bmfm_targets_evil", "run"),
    ("bmfm_targets.x:os", "system"),
    ("omegaconf/../os", "system"),
    ("", ""),
]


@pytest.mark.parametrize(("module", "name"), DANGEROUS)
@pytest.mark.parametrize("after", [b"R.", b"\x81.", b"."])
def test_a_name_that_is_not_on_the_list_is_said_and_never_called(module, name, after):
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_pickle(by_name(module, name, one_tuple("touch canary"), after), "weights.ckpt")
    message = str(caught.value)
    assert message.startswith("weights.ckpt names ")
    assert f"{module}.{name}" in message
    assert "Nothing was executed" in message
    assert "saved again as safetensors" in message
    assert caught.value.exit_code == 3


def test_names_given_by_the_stack_are_looked_up_in_the_same_list():
    named = b"\x80\x04" + text("os") + text("system") + b"\x93" + one_tuple("touch canary") + b"R."
    with pytest.raises(UnsafeCheckpointError, match=r"'os.system'"):
        read_pickle(named, "case")
    number = b"\x80\x04K\x01K\x02\x93."
    with pytest.raises(UnsafeCheckpointError, match="names ''"):
        read_pickle(number, "case")


def test_real_payloads_leave_no_trace(tmp_path):
    import os

    canary = tmp_path / "canary"
    payloads = [
        Reduced(os.system, f"touch {canary}"),
        Reduced(eval, f"open({str(canary)!r}, 'w')"),
        Reduced(exec, f"open({str(canary)!r}, 'w')"),
        {"state_dict": [Reduced(open, str(canary), "w")]},
        collections.OrderedDict(a=Reduced(os.system, f"touch {canary}")),
        Reduced(getattr, Reduced(__import__, "os"), "system"),
    ]
    for payload in payloads:
        for protocol in PROTOCOLS:
            with pytest.raises(UnsafeCheckpointError):
                read_pickle(pickle.dumps(payload, protocol), "case")
    assert not canary.exists()


CALLS_OF_VALUES = {
    "the result of a call": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "a text": b"\x80\x02" + text("os.system") + b")R.",
    "a record": by_name("bmfm_targets", "C", b")", b"\x81)R."),
    "a list": b"\x80\x02])R.",
}


@pytest.mark.parametrize("payload", CALLS_OF_VALUES.values(), ids=CALLS_OF_VALUES)
def test_only_a_listed_name_can_be_called(payload):
    with pytest.raises(
        UnsafeCheckpointError, match=r"calls a value of type .* Nothing was executed"
    ):
        read_pickle(payload, "case")


STATES = {
    "a list": b"\x80\x02]}" + text("__setstate__") + b"K\x01sb.",
    "a text": b"\x80\x02" + text("x") + b"}b.",
    "a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "a record's class": b"\x80\x02cbmfm_targets\nC\n}b.",
}


@pytest.mark.parametrize("payload", STATES.values(), ids=STATES)
def test_only_records_and_mappings_take_attributes(payload):
    with pytest.raises(UnsafeCheckpointError, match=r"gives a value of type .* attributes"):
        read_pickle(payload, "case")


def test_special_attributes_of_a_record_are_data():
    tricky = {"__class__": "os._wrap_close", "__setstate__": "x", "__reduce__": [1], "__dict__": {}}
    state = pickle.dumps(tricky, 2)[2:-1]
    found = read_pickle(by_name("bmfm_targets", "C", b")", b"\x81" + state + b"b."), "case")
    assert type(found) is Record
    assert found.fields == tricky


def test_attributes_of_a_mapping_are_left_out():
    ordered = collections.OrderedDict(a=1)
    ordered._metadata = {"version": 1}
    assert read_pickle(pickle.dumps(ordered, 2), "case") == {"a": 1}


INSTRUCTIONS = {
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "INST": b"(" + text("touch canary") + b"ios\nsystem\n.",
    "OBJ": b"\x80\x02(cbmfm_targets\nC\no.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "BYTEARRAY8": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_data_does_not_need_are_refused_by_name(name):
    with pytest.raises(UnsafeCheckpointError, match=f"the pickle instruction {name}"):
        read_pickle(INSTRUCTIONS[name], "case")


def test_objects_outside_the_pickle_are_refused_where_there_are_none():
    for payload in (b"\x80\x02" + text("x") + b"Q.", b"Px\n."):
        with pytest.raises(UnsafeCheckpointError, match="points to objects outside the pickle"):
            read_pickle(payload, "case")


MALFORMED = {
    "nothing": b"",
    "no end": pickle.dumps([1, 2])[:-1],
    "an empty stack": b"\x80\x02.",
    "a pop of nothing": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "a tuple across a mark": b"\x80\x02K\x01(\x86.",
    "an unknown memo": b"\x80\x02h\x09.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "a nested tuple as a key": b"\x80\x02}))\x86K\x01s.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "items for a list": b"\x80\x02](K\x01K\x02u.",
    "entries for a text": b"\x80\x02" + text("x") + b"K\x01a.",
    "arguments that are no tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "a dtype of objects": by_name("numpy", "dtype", one_tuple("O8")),
    "a dtype of a structure": by_name("numpy", "dtype", one_tuple("V4")),
    "a number of another length": by_name(
        "numpy.core.multiarray", "scalar", b"cnumpy\ndtype\n" + one_tuple("f8") + b"RC\x01a\x86"
    ),
    "an encoding": by_name("_codecs", "encode", text("x") + text("rot13") + b"\x86"),
    "something else": b"GIF89a not a pickle at all",
    "a digit bomb": b"I" + b"9" * 10_000 + b"\n.",
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_said_to_be_damaged(payload):
    with pytest.raises(DamagedCheckpointError, match="holds no pickle that can be read") as caught:
        read_pickle(payload, "weights.ckpt")
    assert caught.value.exit_code == 3


def test_steps_copies_and_length_are_bounded():
    with pytest.raises(UnsafeCheckpointError, match="steps"):
        read_pickle(b"\x80\x02" + b"N0" * 1_000_001 + b"N.", "case")
    # One list of a hundred thousand entries, copied into a set again and again.
    entries = b"(" + b"K\x01" * 100_000 + b"l" + b"q\x00"
    again = b"cbuiltins\nset\nh\x00\x85R0" * 30
    with pytest.raises(UnsafeCheckpointError, match="copies"):
        read_pickle(b"\x80\x02" + entries + again + b".", "case")
    with pytest.raises(UnsafeCheckpointError, match="is the limit"):
        read_pickle(bytes(MAX_BYTES + 1), "case")


def test_a_value_inside_itself_or_far_too_deep_is_no_configuration():
    inside = b"\x80\x02]q\x00h\x00a."
    deep = b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."
    for payload in (inside, deep):
        with pytest.raises(UnsafeCheckpointError, match="nested more than"):
            plain_values(read_pickle(payload, "case"), "case")
    # Eleven lists, each naming the one before ten times: 10^11 entries when spelled out.
    wide = b"\x80\x02(K\x01lq\x00" + b"".join(
        b"(" + b"h" + bytes([n]) * 1 + (b"h" + bytes([n])) * 9 + b"lq" + bytes([n + 1])
        for n in range(11)
    )
    with pytest.raises(UnsafeCheckpointError, match="parts"):
        plain_values(read_pickle(wide + b".", "case"), "case")


def test_every_cut_and_every_flipped_bit_ends_in_an_error_or_in_data():
    value = {"a": [1.5, "x", (True, None)], "o": collections.OrderedDict(b=np.float64(2))}
    for protocol in (2, 4):
        raw = pickle.dumps(value, protocol)
        for length in range(len(raw)):
            with pytest.raises(InputDataError):
                read_pickle(raw[:length], "case")
        for place in range(len(raw)):
            for bit in range(8):
                changed = bytearray(raw)
                changed[place] ^= 1 << bit
                try:
                    read_pickle(bytes(changed), "case")
                except InputDataError:
                    continue


def test_random_bytes_never_end_in_another_error():
    rng = np.random.default_rng(0)
    alphabet = np.frombuffer(
        b"\x80\x02(])}tQRcbas0u.K\x01X\x00h\x85\x86\x87q\x81\x93\x94N", np.uint8
    )
    for _ in range(3_000):
        raw = rng.choice(alphabet, int(rng.integers(1, 40))).tobytes()
        try:
            read_pickle(raw, "case")
        except InputDataError:
            continue
